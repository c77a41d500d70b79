import { defineConfig } from "vite";

// The bundle is committed, so that who installs Tutelage needs no Node: `make page` makes it anew.
export default defineConfig({
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: "../static",
    emptyOutDir: true,
    assetsInlineLimit: 0, // the page allows no data: but for pictures
    license: { fileName: "licenses.md" }, // those of what is in the bundle
    modulePreload: { polyfill: false }, // it would be an inline script
  },
  server: { proxy: { "/api": "http://127.0.0.1:8080", "/clips": "http://127.0.0.1:8080" } },
});
