/** The drawings without their weight: it comes with the first chart. */
import { lazy } from "react";

export const Lines = lazy(async () => ({ default: (await import("./charts")).Lines }));
export const Band = lazy(async () => ({ default: (await import("./charts")).Band }));
export const Stack = lazy(async () => ({ default: (await import("./charts")).Stack }));
export const Dots = lazy(async () => ({ default: (await import("./charts")).Dots }));
