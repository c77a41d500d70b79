// Keys: what they do, and how they are shown.

import { useEffect, useLayoutEffect, useRef } from "preact/hooks";

const NAMES = {
  ArrowLeft: "←",
  ArrowRight: "→",
  ArrowUp: "↑",
  ArrowDown: "↓",
  " ": "space",
  Enter: "⏎",
};

export function Key({ of }) {
  return <kbd>{NAMES[of] ?? (of.length === 1 ? of.toUpperCase() : of)}</kbd>;
}

const MARKS = { Comma: ",", Period: ".", Minus: "-", Equal: "=" };

/** What a key may stand for, the likeliest first: what it writes, then what is at its place on a keyboard that
    writes English, for those that write other letters, or have their digits elsewhere. */
export function meant({ key = "", code = "" }) {
  const written = [key, key.toLowerCase()];
  if (key.length > 1 || /^[a-z]$/i.test(key)) return written; // also where letters have changed places
  return [...written, MARKS[code] ?? code.replace(/^(Key|Digit)/, "").toLowerCase()];
}

const isScrolledBy = (key, { scrollHeight, clientHeight, scrollWidth, clientWidth }) =>
  (/^Arrow(Up|Down)$/.test(key) && scrollHeight > clientHeight) ||
  (/^Arrow(Left|Right)$/.test(key) && scrollWidth > clientWidth);

/** Calls `bindings[key](event)` as long as `on`; not while a text is typed, nor where it moves what has the
    focus, nor again while it is held. */
export function useKeys(bindings, on = true) {
  const latest = useRef(bindings);
  latest.current = bindings;
  useLayoutEffect(() => {
    if (!on) return;
    const pressed = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const at = event.target;
      if (at.matches?.("input:not([type=range]), textarea, select")) return;
      if (at.matches?.("input[type=range]") && event.key.startsWith("Arrow")) return;
      if (at.matches?.("[tabindex]") && isScrolledBy(event.key, at)) return;
      if (at.matches?.("button, a, summary") && (event.key === "Enter" || event.key === " ")) return;
      const what = latest.current[meant(event).find((key) => key in latest.current)];
      if (!what) return;
      event.preventDefault();
      if (!event.repeat) what(event);
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, [on]);
}

/** A button that was clicked does not keep the focus: else the next space would press it once more. */
export function useFreeKeys() {
  useEffect(() => {
    const clicked = (event) => {
      const button = event.detail > 0 && event.target.closest?.("button");
      if (button && !button.closest("dialog")) button.blur();
    };
    addEventListener("click", clicked);
    return () => removeEventListener("click", clicked);
  }, []);
}
