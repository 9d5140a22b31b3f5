/** What the keyboard does, and where it is turned off. */
import { useState } from "react";
import { Button } from "../ui/basics";
import { Dialog } from "../ui/dialog";
import { lettersAreOn, turnLetters } from "./keys";
import { PAGES } from "./pages";

const KEYS: [string, string][] = [
  ["?", "this help"],
  ["j / k", "next / previous row"],
  ["Enter", "open the row"],
  ["Esc", "close what is open"],
  ["/", "search"],
  ["a / x", "approve / reject what is open"],
  ["z", "put what is open off, or wake it"],
  ["t", "the charts as tables; the one that has the focus alone"],
  ["← →", "in a lane of the overview: the mark before, the next one"],
  ["← ↑ → ↓", "in an event's tree: cause, row, effect"],
  ...PAGES.map(({ letter, name }): [string, string] => [`g ${letter}`, name]),
];

export function Help({ onClose }: { onClose: () => void }) {
  const [on, setOn] = useState(lettersAreOn);
  return (
    <Dialog title="Keyboard" onClose={onClose}>
      <dl className="grid grid-cols-[auto_1fr] gap-x-4 gap-y-1">
        {KEYS.map(([key, does]) => (
          <div key={key} className="contents">
            <dt>
              <kbd className="rounded bg-raised px-1.5 py-0.5 font-mono text-xs">{key}</kbd>
            </dt>
            <dd>{does}</dd>
          </div>
        ))}
      </dl>
      <label className="flex items-center gap-2">
        <input
          type="checkbox"
          checked={on}
          onChange={(event) => {
            turnLetters(event.target.checked);
            setOn(event.target.checked);
          }}
        />
        letters act as shortcuts
      </label>
      <Button onClick={onClose}>Close</Button>
    </Dialog>
  );
}
