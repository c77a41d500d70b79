// What is asked and how to answer, in three screens, before the first question of a kind that is answered so.

import { useEffect, useRef, useState } from "preact/hooks";

import { read, write } from "./kept.js";
import { Markdown } from "./text.jsx";

const name = ({ kind, view }) => `tutelage-guided:${kind}:${view.control.type}`;

export const wasGuided = (question) => read(name(question)) !== null;

export function Guide({ question, done }) {
  const screens = question.view.guide;
  const [at, setAt] = useState(0);
  const dialog = useRef(null);
  useEffect(() => {
    dialog.current.showModal();
  }, []);
  const end = () => {
    write(name(question), "1");
    done();
  };
  const last = at === screens.length - 1;
  return (
    <dialog ref={dialog} class="guide" aria-labelledby="guide-title" onClose={end}>
      <p class="step">
        {at + 1} of {screens.length}
      </p>
      <h1 id="guide-title">{screens[at].title}</h1>
      <Markdown text={screens[at].text} />
      <div class="row">
        <button type="button" class="quiet" onClick={() => (at ? setAt(at - 1) : dialog.current.close())}>
          {at ? "Back" : "Skip"}
        </button>
        <button type="button" class="main" autofocus onClick={() => (last ? dialog.current.close() : setAt(at + 1))}>
          {last ? "Begin" : "Next"}
        </button>
      </div>
    </dialog>
  );
}
