/** Who may do what, with which keys, under which policy, and who is told. */
import { useNavigate, useSearch } from "@tanstack/react-router";
import type { ReactNode } from "react";
import type { Setting } from "../router";
import { Keys } from "../settings/Keys";
import { Notifications } from "../settings/Notifications";
import { Choice } from "../settings/parts";
import { People } from "../settings/People";
import { Policy } from "../settings/Policy";

const NAMES: Record<Setting, string> = {
  people: "People",
  keys: "Keys",
  policy: "Policy",
  notifications: "Notifications",
};
const SHOWN: Record<Setting, () => ReactNode> = {
  people: People,
  keys: Keys,
  policy: Policy,
  notifications: Notifications,
};

export function Settings() {
  const { view: chosen = "people" } = useSearch({ from: "/settings" });
  const navigate = useNavigate({ from: "/settings" });
  const Shown = SHOWN[chosen];
  return (
    <div className="max-w-6xl space-y-4">
      <Choice
        label="settings"
        names={NAMES}
        chosen={chosen}
        choose={(view) => void navigate({ search: (before) => ({ ...before, view }) })}
      />
      <Shown />
    </div>
  );
}
