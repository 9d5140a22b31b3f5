/** A chart with its numbers: what it shows can always be read as a table. */
import { useState, type ReactNode } from "react";
import { Button, Panel } from "../ui/basics";
import { Fetched } from "../ui/fetched";
import { Table } from "../ui/table";

interface ChartPanelProps {
  title: string;
  about?: ReactNode;
  head: readonly string[];
  rows: readonly (readonly ReactNode[])[];
  /** How tall the drawing is, as a class. */
  size?: string;
  /** `group` where parts of the drawing can be chosen. */
  role?: "img" | "group";
  children: ReactNode;
}

export function ChartPanel({ title, about, head, rows, size = "h-48", role = "img", children }: ChartPanelProps) {
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
      {about && <div className="mb-2 text-sm text-muted">{about}</div>}
      {asTable ? (
        <div className="max-h-72 overflow-y-auto" tabIndex={0} role="region" aria-label={`${title}, numbers`}>
          <Table label={title} head={head} rows={rows} />
        </div>
      ) : (
        <Fetched height={size}>
          <div role={role} aria-label={`${title}: a chart`} className={size}>
            {children}
          </div>
        </Fetched>
      )}
    </Panel>
  );
}
