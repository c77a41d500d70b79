// An episode that a person plays, or takes over: pictures come, actions go, over one websocket.
//
//   from the service   a picture (JPEG, binary), or {"state": "ready" | "playing" | "policy" | "you" | "keeping" | "ended", ...}
//   to the service     {"action": value or null}, {"take_over": true | false}, {"restart": true}, {"end": true}

import { useEffect, useRef, useState } from "preact/hooks";

import { useGamepad } from "./controls.jsx";
import { Key, meant, useKeys } from "./keys.jsx";

const CONNECTING = { state: "connecting", step: 0 };

/** A websocket's newest picture and state. */
export function useStream(path, on) {
  const socket = useRef(null);
  const picture = useRef(null);
  const [state, setState] = useState(CONNECTING);
  const [tries, setTries] = useState(0);
  useEffect(() => {
    if (!on) return;
    setState(CONNECTING);
    const address = new URL(path, location.href);
    address.protocol = address.protocol.replace("http", "ws");
    const ws = new WebSocket(address);
    ws.binaryType = "blob";
    socket.current = ws;
    ws.onmessage = async ({ data }) => {
      if (typeof data === "string") {
        setState(JSON.parse(data));
        return;
      }
      const bitmap = await createImageBitmap(data).catch(() => null);
      const canvas = picture.current;
      if (!bitmap || !canvas) return;
      if (canvas.width !== bitmap.width) Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
      bitmap.close();
    };
    ws.onclose = ({ reason }) =>
      setState((now) => (now.state === "ended" ? now : { state: "closed", step: now.step, reason }));
    return () => {
      ws.onclose = null;
      ws.close(1000);
    };
  }, [path, on, tries]);
  const send = (message) => {
    if (socket.current?.readyState === WebSocket.OPEN) socket.current.send(JSON.stringify(message));
  };
  const again = () => setTries(tries + 1);
  return { picture, state, send, again };
}

/** Sends the action of the keys, sliders or sticks that are held; null: none. Letting go, and leaving the
    window, always counts. */
export function useActions(control, on, send) {
  const held = useRef([]);
  const values = useRef(control.sliders?.map((one) => one.start) ?? []);
  const [down, setDown] = useState([]);
  const tell = () => {
    setDown([...held.current]);
    if (control.keys) send({ action: held.current.length ? control.keys[held.current.at(-1)] : null });
    else send({ action: values.current });
  };
  useEffect(() => {
    if (!on) return;
    const keyOf = (event) => meant(event).find((key) => key in (control.keys ?? {}));
    const press = (event) => {
      const key = keyOf(event);
      if (key === undefined || event.repeat) return;
      event.preventDefault();
      hold(key);
    };
    const release = (event) => held.current.includes(keyOf(event)) && letGo(keyOf(event));
    const leave = () => {
      held.current = [];
      tell();
    };
    addEventListener("keydown", press);
    addEventListener("keyup", release);
    addEventListener("blur", leave);
    return () => {
      removeEventListener("keydown", press);
      removeEventListener("keyup", release);
      removeEventListener("blur", leave);
    };
  }, [on]);
  const move = (n, value) => {
    values.current = values.current.map((old, k) => (k === n ? value : old));
    tell();
  };
  useGamepad(on && !control.keys, (axes) => {
    for (const [axis, value] of Object.entries(axes)) {
      const slider = control.sliders[axis];
      if (slider) move(Number(axis), slider.low + ((value + 1) / 2) * (slider.high - slider.low));
    }
  });
  const hold = (key) => {
    held.current = [...held.current.filter((one) => one !== key), key];
    tell();
  };
  const letGo = (key) => {
    held.current = held.current.filter((one) => one !== key);
    tell();
  };
  const turn = (key) => (held.current.includes(key) ? letGo(key) : hold(key)); // by Enter on its button
  return { down, values: values.current, hold, letGo, turn, move };
}

/** The keys of a control as buttons that can be held, or its sliders. */
export function Handles({ control, actions }) {
  if (!control.keys)
    return (
      <div class="sliders">
        {control.sliders.map((one, n) => (
          <label key={one.label}>
            <span>{one.label}</span>
            <input
              type="range"
              min={one.low}
              max={one.high}
              step={one.step}
              value={actions.values[n]}
              onInput={(event) => actions.move(n, event.currentTarget.valueAsNumber)}
            />
            <output>{actions.values[n].toFixed(2)}</output>
          </label>
        ))}
      </div>
    );
  return (
    <div class="choices">
      {Object.keys(control.keys).map((key) => (
        <button
          key={key}
          type="button"
          class={`choice ${actions.down.includes(key) ? "held" : ""}`}
          aria-pressed={actions.down.includes(key)}
          onPointerDown={() => actions.hold(key)}
          onPointerUp={() => actions.letGo(key)}
          onPointerLeave={() => actions.letGo(key)}
          onClick={(event) => event.detail === 0 && actions.turn(key)}
        >
          <Key of={key} />
          <span>{control.labels?.[key] ?? `Action ${control.keys[key]}`}</span>
        </button>
      ))}
    </div>
  );
}

const WORDS = {
  connecting: "Connecting …",
  ready: "Press a key to begin.",
  playing: "You play.",
  keeping: "It is being kept; the service is not quite there …",
  ended: "The episode has ended.",
  closed: "It was broken off.",
};

export function Play({ control, id, shown, played }) {
  const [over, setOver] = useState(false);
  const { picture, state, send, again } = useStream(`${control.socket}${encodeURIComponent(id)}`, shown && !over);
  const actions = useActions(control, shown && !over, send);
  useEffect(() => {
    if (state.state !== "ended" || !state.kept || over) return;
    setOver(true);
    played();
  }, [state]);
  const restart = () => (state.state === "closed" ? again() : send({ restart: true }));
  useKeys({ Enter: () => send({ end: true }), r: restart }, shown && !over);
  return (
    <div class="play">
      <canvas ref={picture} width="256" height="256" aria-label="The episode" />
      <p class="state" aria-live="polite">
        {WORDS[state.state] ?? state.state} {state.reason} <small>step {state.step ?? 0}</small>
      </p>
      <Handles control={control} actions={actions} />
      <div class="choices">
        <button type="button" class="choice" onClick={restart}>
          <Key of="r" />
          <span>From the beginning</span>
        </button>
        <button type="button" class="choice main" onClick={() => send({ end: true })}>
          <Key of="Enter" />
          <span>That is it</span>
        </button>
      </div>
    </div>
  );
}
