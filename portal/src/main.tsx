/** Opens the pages: goes on with the session, or signs in with the token of a link, then shows the router. */
import { QueryClientProvider } from "@tanstack/react-query";
import { RouterProvider } from "@tanstack/react-router";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import "./index.css";
import { signInByLink } from "./signin";
import { queryClient } from "./live/context";
import { router } from "./router";
import { followTheme } from "./shell/theme";

const root = document.getElementById("root");
if (root === null) throw new Error("the page has no root");

followTheme();
await signInByLink();
createRoot(root).render(
  <StrictMode>
    <QueryClientProvider client={queryClient}>
      <RouterProvider router={router} />
    </QueryClientProvider>
  </StrictMode>,
);
