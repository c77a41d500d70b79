// Texts: Markdown without HTML, and the words in which two of them differ.

import { diffWords } from "diff";
import { micromark } from "micromark";
import { gfmTable, gfmTableHtml } from "micromark-extension-gfm-table";
import { useMemo } from "preact/hooks";

const LONGEST_MS = 150; // of looking for the words in which two texts differ
// micromark writes tags as text and drops links that are no web address.
const OPTIONS = { extensions: [gfmTable()], htmlExtensions: [gfmTableHtml()] };

export function Markdown({ text, class: name = "" }) {
  const html = useMemo(() => micromark(text ?? "", OPTIONS), [text]);
  return text ? <div class={`text ${name}`} dangerouslySetInnerHTML={{ __html: html }} /> : null;
}

/** `text`, with what is not in `other` marked. */
export function Differing({ text, other }) {
  const parts = useMemo(() => diffWords(other, text, { timeout: LONGEST_MS }), [text, other]);
  if (!parts) return <p class="none">They are too different to show in which words.</p>;
  return (
    <div class="text differing">
      {parts
        .filter((part) => !part.removed)
        .map((part, n) => (part.added ? <ins key={n}>{part.value}</ins> : part.value))}
    </div>
  );
}
