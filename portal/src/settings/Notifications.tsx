/** Whom the fleet tells what, what each target has taken of late, and what it never took. */
import { useState } from "react";
import { call } from "../api/client";
import type { NotificationRule, Notifications as Declared, NotificationSent, NotificationTarget } from "../api/types";
import { count, seconds, UNKNOWN, words } from "../format";
import { useSnapshot } from "../live/context";
import { useSession } from "../shell/session";
import { Ago, Badge, Button, Code, Empty, Facts, Panel } from "../ui/basics";
import { Dialog } from "../ui/dialog";
import { Shown } from "../ui/problem";
import { Table } from "../ui/table";
import { DeadLetters } from "./DeadLetters";
import { DeedDialog, Forbidden } from "./parts";
import { refusal, useRefusal } from "./rights";

const EVERY_MS = 15_000;

export function Notifications() {
  const who = useSession();
  if (refusal(who?.role, "audit") !== null) {
    return <Forbidden title="Notifications" permission="audit" />;
  }
  return <DeclaredOnes />;
}

function DeclaredOnes() {
  const query = useSnapshot<Declared>(["events", "notifications"], "/notifications", { every: EVERY_MS });
  return (
    <Shown query={query} lines={4} height="h-24">
      {(declared) =>
        declared.targets.length === 0 ? (
          <Panel title="Notifications">
            <Empty
              why={`Nobody is told of anything: ${declared.reason ?? "there is no target"}.`}
              next={
                <>
                  Name a file in the fleet file (<Code>notifications: notifications.yaml</Code>) with
                  targets and rules, then start anew.
                </>
              }
            />
          </Panel>
        ) : (
          <div className="space-y-4">
            {declared.targets.map((target) => (
              <Target key={target.name} target={target} />
            ))}
            <Panel title="Dead letters of all targets">
              <DeadLetters consumer={declared.buried_as} />
            </Panel>
            <Rules declared={declared} />
          </div>
        )
      }
    </Shown>
  );
}

const KINDS: Record<string, string> = { slack: "Slack channel", webhook: "webhook", email: "e-mail" };

function Target({ target }: { target: NotificationTarget }) {
  const why = useRefusal("control");
  const [testing, setTesting] = useState(false);
  return (
    <Panel
      title={`${target.name} · ${KINDS[target.kind] ?? target.kind}`}
      aside={
        <Button data-row="" why={why} aria-label={`send a test to ${target.name}`} onClick={() => setTesting(true)}>
          Send a test
        </Button>
      }
    >
      <Facts
        rows={[
          ["is told of", target.notices.join(", ")],
          ["not told yet", <Waiting key="waiting" target={target} />],
          ...(target.kind === "slack"
            ? [["approvals there", target.decides ? "yes, of low and medium risk" : "no"] as [string, string]]
            : []),
        ]}
      />
      <h3 className="mt-4 mb-1 font-semibold">Told of late</h3>
      <Lately target={target} />
      {testing && <Test target={target.name} onClose={() => setTesting(false)} />}
    </Panel>
  );
}

function Waiting({ target: { waiting, retried, reason } }: { target: NotificationTarget }) {
  if (waiting === null) return `${UNKNOWN} (${reason ?? "not known"})`;
  if (waiting === 0) return "nothing waits";
  return (
    <>
      {count(waiting)} {waiting === 1 ? "notice" : "notices"}
      {retried !== null && retried > 0 && (
        <>
          {" "}
          <Badge tone="warn">{count(retried)} tried more than once</Badge>
        </>
      )}
    </>
  );
}

function Lately({ target: { told } }: { target: NotificationTarget }) {
  if (told.length === 0) return <p className="text-muted">It has taken nothing of late.</p>;
  return (
    <Table
      label="notices that the target has taken, the latest first"
      head={["when", "notice", "deployment", "about"]}
      rows={told.map((one) => [
        <Ago key="at" at={one.at} />,
        <span key="notice" className="font-mono text-xs whitespace-nowrap">
          {one.notice}
        </span>,
        one.deployment ?? UNKNOWN,
        one.title ?? "the fleet",
      ])}
    />
  );
}

function Rules({ declared: { rules, portal_url, give_up_after_s } }: { declared: Declared }) {
  return (
    <Panel title="Rules">
      <Table
        label="rules as they are declared"
        head={["go to", "notices", "from risk", "deployments"]}
        rows={rules.map((rule) => [
          rule.targets.join(", "),
          <span key="notices" className="block min-w-32 break-words">
            {(rule.notices ?? []).join(", ")}
          </span>,
          fromRisk(rule),
          rule.deployments?.length ? rule.deployments.join(", ") : "all",
        ])}
      />
      <p className="mt-2 text-muted">
        Declared in the notifications file that the fleet file names; read at a start. What could not
        be sent for {seconds(give_up_after_s)} is a dead letter. Links lead to {portal_url ?? "nowhere: portal_url is not set"}.
      </p>
    </Panel>
  );
}

function fromRisk({ min_risk }: NotificationRule): string {
  return min_risk ? words(min_risk) : "any";
}

function Test({ target, onClose }: { target: string; onClose: () => void }) {
  const [sent, setSent] = useState<NotificationSent | null>(null);
  const send = async () => {
    const path = `/notifications/${encodeURIComponent(target)}/test`;
    setSent((await call<NotificationSent>(path, { method: "POST" })).data);
  };
  if (sent === null) {
    return (
      <DeedDialog title={`Send a test to ${target}`} verb="Send" send={send} onClose={onClose}>
        <p>
          One message that says it is a test and who has asked for it goes out at once, once. It is
          audited, with what came of it.
        </p>
      </DeedDialog>
    );
  }
  return (
    <Dialog title={`Send a test to ${target}`} onClose={onClose}>
      <p role="status">
        <Badge tone={sent.sent ? "good" : "bad"}>{sent.sent ? "taken" : "not taken"}</Badge>{" "}
        {sent.sent ? `${target} has taken it.` : sent.reason}
      </p>
      <Button onClick={onClose}>Close</Button>
    </Dialog>
  );
}
