/** Signing in at a provider, or with the one-time token that `optiinfra up` prints. */
import { useQuery } from "@tanstack/react-query";
import { useState, type FormEvent } from "react";
import { call, signIn } from "../api/client";
import { session } from "../api/session";
import type { Providers } from "../api/types";
import { linkRefused } from "../signin";
import { Button, Code } from "../ui/basics";
import { ProblemNote } from "../ui/problem";

/** The token itself, or the one in a pasted link. */
function tokenIn(pasted: string): string {
  return pasted.trim().replace(/^.*#token=/, "");
}

export function SignIn() {
  const [pasted, setPasted] = useState("");
  const [refused, setRefused] = useState<unknown>(linkRefused);
  const [busy, setBusy] = useState(false);
  const submit = async (event: FormEvent) => {
    event.preventDefault();
    setBusy(true);
    try {
      await signIn(tokenIn(pasted));
    } catch (error) {
      setRefused(error);
      setBusy(false);
    }
  };
  return (
    <main className="mx-auto flex min-h-full max-w-md flex-col justify-center gap-4 p-4">
      <h1 className="text-2xl font-bold">OptiInfra</h1>
      {session.ended && <p role="status">You were signed out: {session.ended}.</p>}
      <Elsewhere />
      <p>
        <Code>optiinfra up</Code> prints a link that opens these pages signed in, and{" "}
        <Code>optiinfra login</Code> a new one at any time. Each works once, for 15 minutes.
      </p>
      <form onSubmit={(event) => void submit(event)} className="space-y-3">
        <label className="block">
          <span className="font-medium">One-time token, or the whole link</span>
          <input
            type="password"
            autoComplete="off"
            required
            autoFocus
            value={pasted}
            onChange={(event) => setPasted(event.target.value)}
            className="mt-1 block w-full rounded-md border border-line bg-panel px-3 py-2 font-mono"
          />
        </label>
        <Button type="submit" look="primary" why={busy ? "signing in" : null}>
          Sign in
        </Button>
      </form>
      {refused !== null && <ProblemNote error={refused} />}
    </main>
  );
}

/** Where else one has an account; nothing where nobody has set that up. */
function Elsewhere() {
  const { data } = useQuery({
    queryKey: ["sign-in providers"],
    queryFn: async () => (await call<Providers>("/session/providers")).data.providers,
    staleTime: Infinity,
  });
  return data?.map((name) => (
    <a
      key={name}
      href={`/api/v1/sign-in/${name}`}
      className="block rounded-md border border-line bg-panel px-3 py-2 text-center font-medium"
    >
      Sign in with {NAMES[name] ?? name}
    </a>
  ));
}

const NAMES: Record<string, string> = { google: "Google", github: "GitHub" };
