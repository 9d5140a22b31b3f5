/** A chart with its numbers: what it shows can always be read as a table. */
import { Suspense, useState, type ReactNode } from "react";
import { Button, Panel, Skeleton } from "../ui/basics";
import { Table } from "../ui/table";

interface ChartPanelProps {
  title: string;
  about?: ReactNode;
  head: readonly string[];
  rows: readonly (readonly ReactNode[])[];
  children: ReactNode;
}

export function ChartPanel({ title, about, head, rows, children }: ChartPanelProps) {
  const [asTable, setAsTable] = useState(false);
  return (
    <Panel
      title={title}
      aside={
        <Button
          look="quiet"
          data-action="table"
          aria-pressed={asTable}
          aria-label={`${title} as a table`}
          onClick={() => setAsTable(!asTable)}
        >
          Table
        </Button>
      }
    >
      {about && <p className="mb-2 text-sm text-muted">{about}</p>}
      {asTable ? (
        <div className="max-h-72 overflow-y-auto" tabIndex={0} role="region" aria-label={`${title}, numbers`}>
          <Table label={title} head={head} rows={rows} />
        </div>
      ) : (
        <Suspense fallback={<Skeleton lines={1} height="h-48" />}>
          <div role="img" aria-label={`${title}: a chart`} className="h-48">
            {children}
          </div>
        </Suspense>
      )}
    </Panel>
  );
}
