/** The drawings without their weight: it comes with the first chart. */
import { lazy } from "react";
import { fetched } from "../ui/fetched";

const charts = () => fetched(() => import("./charts"));

export const Lines = lazy(async () => ({ default: (await charts()).Lines }));
export const Band = lazy(async () => ({ default: (await charts()).Band }));
export const Stack = lazy(async () => ({ default: (await charts()).Stack }));
export const Dots = lazy(async () => ({ default: (await charts()).Dots }));
