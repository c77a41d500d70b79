// The ways to answer: each shows itself and calls `answer(value)`.

import { useEffect, useRef, useState } from "preact/hooks";

import { Key, useKeys } from "./keys.jsx";
import { Play } from "./play.jsx";
import { pictureOf, watchPictures } from "./playback.js";

export function Control({ control, ...rest }) {
  switch (control.type) {
    case "choice":
      return <Choice control={control} {...rest} />;
    case "sliders":
      return <Sliders control={control} {...rest} />;
    case "frames":
      return <Marks control={control} {...rest} />;
    case "play":
      return <Play control={control} {...rest} />;
    default:
      return <p class="fault">This page does not know “{control.type}”. Reload it to get the newest one.</p>;
  }
}

const isSame = (one, other) => JSON.stringify(one) === JSON.stringify(other);

function Choice({ control, shown, answer, before }) {
  const wasSaid = (one) => (before && !before.cannot_tell && isSame(before.value, one.value)) || undefined;
  useKeys(Object.fromEntries(control.choices.map((one) => [one.key, () => answer(one.value)])), shown);
  return (
    <div class="choices">
      {control.choices.map((one) => (
        <button
          key={one.key}
          type="button"
          class="choice"
          aria-pressed={wasSaid(one)}
          onClick={() => answer(one.value)}
        >
          <Key of={one.key} />
          <span>{one.label}</span>
        </button>
      ))}
    </div>
  );
}

function Sliders({ control, shown, answer, before }) {
  const [values, setValues] = useState(() => before?.value ?? control.sliders.map((one) => one.start));
  const set = (n, value) => setValues((now) => now.map((old, k) => (k === n ? value : old)));
  const first = useRef(null);
  useEffect(() => {
    if (shown) first.current?.focus({ preventScroll: true }); // so that arrows move it at once
  }, [shown]);
  useKeys({ Enter: () => answer(values) }, shown);
  useGamepad(
    shown,
    (axes) =>
      setValues((now) =>
        now.map((old, n) => {
          const { low, high } = control.sliders[n];
          return n in axes ? low + ((axes[n] + 1) / 2) * (high - low) : old;
        }),
      ),
    () => answer(values),
  );
  return (
    <form
      class="sliders"
      onSubmit={(event) => {
        event.preventDefault();
        answer(values);
      }}
    >
      {control.sliders.map((one, n) => (
        <label key={one.label}>
          <span>{one.label}</span>
          <input
            ref={n ? null : first}
            type="range"
            min={one.low}
            max={one.high}
            step={one.step}
            value={values[n]}
            onInput={(event) => set(n, event.currentTarget.valueAsNumber)}
          />
          <output>{values[n].toFixed(2)}</output>
        </label>
      ))}
      <button type="submit" class="choice main">
        <Key of="Enter" />
        <span>Do this</span>
      </button>
    </form>
  );
}

const DEAD_ZONE = 0.12;
const HELD = 0.5; // more than a worn stick shows by itself

/** Whether somebody has a gamepad in hand. */
export const isPadHeld = () =>
  (navigator.getGamepads?.() ?? []).some(
    (pad) => pad?.axes.some((value) => Math.abs(value) >= HELD) || pad?.buttons.some((button) => button.pressed),
  );

/** Calls moved({axis: -1 … 1}) while a gamepad's sticks are held, and pressed() for its first button. */
export function useGamepad(on, moved, pressed = () => {}) {
  const latest = useRef({});
  latest.current = { moved, pressed };
  useEffect(() => {
    if (!on || !navigator.getGamepads) return;
    let frame = 0;
    let down = true; // what is held from the question before presses nothing
    const look = () => {
      const pad = navigator.getGamepads().find(Boolean);
      const held = pad?.axes.map((value, n) => [n, value]).filter(([, value]) => Math.abs(value) > DEAD_ZONE) ?? [];
      if (held.length) latest.current.moved(Object.fromEntries(held));
      const now = Boolean(pad?.buttons[0]?.pressed);
      if (now && !down) latest.current.pressed();
      down = now;
      frame = requestAnimationFrame(look);
    };
    const begin = () => {
      cancelAnimationFrame(frame);
      look();
    };
    if (navigator.getGamepads().some(Boolean)) begin();
    addEventListener("gamepadconnected", begin);
    return () => {
      cancelAnimationFrame(frame);
      removeEventListener("gamepadconnected", begin);
    };
  }, [on]);
}

function Marks({ control, shown, answer, videos, clip, playback }) {
  const [marks, setMarks] = useState([]);
  const began = useRef(0);
  useEffect(() => {
    if (!shown) return;
    began.current = performance.now();
    return videos.current[0] ? watchPictures(videos.current[0]) : undefined;
  }, [shown]);
  const mark = (value) => {
    const video = videos.current[0];
    if (!video) return;
    const seconds = (performance.now() - began.current) / 1000;
    setMarks((now) => [...now, [pictureOf(video, clip.fps, clip.frames), value, Number(seconds.toFixed(3))]]);
  };
  const again = () => {
    setMarks([]);
    began.current = performance.now();
    playback.restart();
  };
  const keys = Object.fromEntries(control.marks.map((one) => [one.key, () => mark(one.value)]));
  useKeys({ ...keys, Enter: () => answer(marks), r: again }, shown);
  const count = (value) => marks.filter((one) => one[1] === value).length;
  return (
    <div class="marks">
      <div class="track" role="img" aria-label={`${marks.length} marks`}>
        {marks.map(([picture, value], n) => (
          <i key={n} class={value > 0 ? "good" : "bad"} style={{ left: `${(100 * picture) / clip.frames}%` }} />
        ))}
      </div>
      <div class="choices">
        {control.marks.map((one) => (
          <button
            key={one.key}
            type="button"
            class={`choice ${one.value > 0 ? "good" : "bad"}`}
            onPointerDown={() => mark(one.value)}
            onClick={(event) => event.detail === 0 && mark(one.value)}
          >
            <Key of={one.key} />
            <span>
              {one.label} · {count(one.value)}
            </span>
          </button>
        ))}
        <button type="button" class="choice" onClick={again}>
          <Key of="r" />
          <span>Again from zero</span>
        </button>
        <button type="button" class="choice main" onClick={() => answer(marks)}>
          <Key of="Enter" />
          <span>Send</span>
        </button>
      </div>
    </div>
  );
}
