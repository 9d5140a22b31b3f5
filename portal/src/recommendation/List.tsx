/** Sentences below one another, or the one that says that there is none. */
export function List({ items, none }: { items: readonly string[]; none: string }) {
  if (items.length === 0) return none ? <p className="text-muted">{none}</p> : null;
  return (
    <ul className="list-disc pl-5">
      {items.map((item) => (
        <li key={item}>{item}</li>
      ))}
    </ul>
  );
}
