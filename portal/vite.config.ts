import tailwindcss from "@tailwindcss/vite";
import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// The pages are served by the API; while developing, what is not a page goes to a running one.
const api = { target: "http://127.0.0.1:8088", ws: true };

export default defineConfig({
  plugins: [react(), tailwindcss()],
  server: { proxy: { "/api": api } },
  build: {
    outDir: "../portal-api/optiinfra/portal_api/pages",
    emptyOutDir: true,
    target: "es2022",
    sourcemap: false,
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
  },
});
