// The policy drives; who holds the key takes over, and what they do is learnt from (HG-DAgger).

import { useEffect, useState } from "preact/hooks";

import { Key, useFreeKeys, useKeys } from "./keys.jsx";
import { Handles, useActions, useStream } from "./play.jsx";

const BANNER = {
  waiting: "NOT YET",
  held: "READY",
  policy: "POLICY",
  you: "YOU",
  ended: "ENDED",
  closed: "BROKEN OFF",
  connecting: "…",
};
const WORDS = {
  waiting: "The run has no policy to watch yet: waiting for its first checkpoint.",
  held: "The episode waits for you: it begins with your first key, or with N for the policy alone.",
  ended: "N begins another episode.",
};

export function Live({ me }) {
  const { picture, state, send, again } = useStream("/api/live?held=1", true);
  const control = state.control ?? { keys: {}, sliders: [] };
  return (
    <>
      <header>
        <strong>{me.run || "Tutelage"}</strong>
        <span class="space" />
        {me.role === "operator" && <a href="/operator">Operator</a>}
        <a href="/">Questions</a>
      </header>
      <main class="live">
        <h1>The policy drives. Take over where it goes wrong.</h1>
        <p class={`banner ${state.state}`} role="status">
          {BANNER[state.state] ?? state.state}
        </p>
        <canvas ref={picture} width="256" height="256" aria-label="The episode" />
        <p class="state">
          {state.reason ?? ""} {WORDS[state.state] ?? ""} <small>step {state.step ?? 0} · corrected {state.corrected ?? 0}</small>
        </p>
        {state.control && <Drive key={JSON.stringify(control)} control={control} send={send} held={state.state === "held"} />}
        {state.state === "closed" && (
          <button type="button" class="choice" onClick={again}>
            Connect again
          </button>
        )}
      </main>
    </>
  );
}

function Drive({ control, send, held }) {
  useFreeKeys();
  const actions = useActions(control, true, send);
  const [holding, setHolding] = useState(false);
  const hold = (over) => {
    setHolding(over);
    send({ take_over: over });
  };
  useKeys({ " ": () => hold(true), n: () => send({ restart: true }) });
  useEffect(() => {
    const up = (event) => event.key === " " && !event.target.matches?.("button") && hold(false);
    const blur = () => hold(false);
    addEventListener("keyup", up);
    addEventListener("blur", blur);
    return () => {
      removeEventListener("keyup", up);
      removeEventListener("blur", blur);
    };
  }, []);
  return (
    <>
      <div class="choices">
        <button
          type="button"
          class={`choice main ${holding ? "held" : ""}`}
          onPointerDown={() => hold(true)}
          onPointerUp={() => hold(false)}
          onPointerLeave={() => hold(false)}
          aria-pressed={holding}
          onClick={(event) => event.detail === 0 && hold(!holding)} // Enter on this button: until the next
        >
          <Key of=" " />
          <span>Hold to take over</span>
        </button>
        <button type="button" class="choice" onClick={() => send({ restart: true })}>
          <Key of="n" />
          <span>{held ? "Begin" : "New episode"}</span>
        </button>
      </div>
      <Handles control={control} actions={actions} />
    </>
  );
}
