// The path below which the site lies, as scripts see it: "" where it has a host of its own.
export const base = new URL(import.meta.url).pathname.replace(/\/static\/.*$/, "");
