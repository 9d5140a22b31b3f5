/** A table that scrolls sideways by itself where the screen is narrow. */
import type { ReactNode } from "react";
import { UNKNOWN } from "../format";

interface TableProps {
  label: string;
  head: readonly string[];
  rows: readonly (readonly ReactNode[])[];
}

/** Leaves out the columns in which nothing is known of any row. */
export function SparseTable({ label, head, rows }: TableProps) {
  const known = head.map((_, column) => rows.some((row) => row[column] !== UNKNOWN));
  const kept = <T,>(cells: readonly T[]) => cells.filter((_, column) => known[column]);
  return <Table label={label} head={kept(head)} rows={rows.map(kept)} />;
}

export function Table({ label, head, rows }: TableProps) {
  return (
    <div className="overflow-x-auto" tabIndex={0} role="region" aria-label={label}>
      <table className="w-full border-collapse text-left text-sm tabular-nums">
        <caption className="sr-only">{label}</caption>
        <thead>
          <tr className="border-b border-line text-xs text-muted">
            {head.map((name) => (
              <th key={name} scope="col" className="py-1 pr-4 font-medium">
                {name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row, number) => (
            <tr key={number} className="border-b border-line align-top last:border-0">
              {row.map((cell, column) => (
                <td key={head[column]} className="py-1 pr-4">
                  {cell}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
