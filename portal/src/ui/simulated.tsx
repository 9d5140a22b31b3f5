/** Beside a figure that comes from emulated replicas: it is not one of real machines. */

interface Props {
  /** The deployments that the figure is of. */
  of: readonly string[];
  /** Those that run on emulated replicas; null or undefined where it is not known. */
  among: readonly string[] | null | undefined;
}

export function Simulated({ of, among }: Props) {
  const here = of.filter((name) => among?.includes(name));
  if (here.length === 0) return null;
  const whole = here.length === of.length;
  return (
    <span
      data-simulated=""
      title={`emulated replicas: ${here.join(", ")}`}
      className="ml-1 inline-block rounded border border-dashed border-line px-1 text-xs font-normal whitespace-nowrap text-muted"
    >
      {whole ? "simulated" : "partly simulated"}
    </span>
  );
}
