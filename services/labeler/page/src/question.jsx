// One question: its panels and the ways to answer it. Those ahead are there too, unseen, with their clips loaded.

import { useLayoutEffect, useRef, useState } from "preact/hooks";

import { Control } from "./controls.jsx";
import { Key, useKeys } from "./keys.jsx";
import { RATES, usePlayback } from "./playback.js";
import { Differing, Markdown } from "./text.jsx";

const TOO_SOON_MS = 150; // after a question appears: a key that was pressed twice, not an answer

/** said({value, cannot_tell, shown_at, ...}): the answer; played(): the service has it already; broken(why): it
    cannot be shown. */
export function Question({ question, shown, active, said, played, broken }) {
  const { view } = question;
  const clips = view.panels.filter((panel) => panel.type === "clip");
  const texts = view.panels.filter((panel) => panel.type === "text");
  const videos = useRef([]);
  const moments = useRef({});
  const [differing, setDiffering] = useState(false);
  const perFrame = view.control.type === "frames";
  const holds = clips.some((clip) => clip.hold_last);
  const playback = usePlayback({
    videos,
    shown,
    fps: clips[0]?.fps ?? 30,
    loop: !perFrame && !holds,
    onFirstPlay: () => (moments.current.first_played_at ??= Date.now() / 1000),
  });

  // Before the paint, which a busy machine makes late: what is pressed from then on is an answer.
  useLayoutEffect(() => {
    if (!shown) return;
    moments.current.shown_at ??= Date.now() / 1000;
    const noticed = () => (moments.current.first_key_at ??= Date.now() / 1000);
    addEventListener("keydown", noticed, { capture: true });
    return () => removeEventListener("keydown", noticed, { capture: true });
  }, [shown]);

  const say = (answer) => {
    if (!shown || Date.now() - 1000 * moments.current.shown_at < TOO_SOON_MS) return;
    said({ question: question.id, value: null, cannot_tell: false, ...answer, ...moments.current, answered_at: Date.now() / 1000 });
  };
  const cannotTell = () => say({ cannot_tell: true });

  const player = { " ": playback.toggle, ",": () => playback.step(-1), ".": () => playback.step(1) };
  const speed = { "-": () => playback.faster(-1), "+": () => playback.faster(1), "=": () => playback.faster(1) };
  useKeys(
    {
      ...(clips.length ? { ...player, ...(perFrame ? {} : { ...speed, r: playback.restart }) } : {}),
      ...(texts.length === 2 ? { d: () => setDiffering(!differing) } : {}),
      ...(view.cannot_tell ? { [view.cannot_tell.key]: cannotTell } : {}),
    },
    active,
  );

  return (
    <section
      class={`question ${shown ? "shown" : "ahead"}`}
      data-question={question.id}
      aria-hidden={!shown}
      inert={!shown}
    >
      <h1>{view.prompt}</h1>
      <Markdown text={view.context} class="context" />
      {question.before && <p class="context">You have answered this before; your answer is marked.</p>}
      <div class={`panels ${clips.length ? "of-clips" : "of-texts"} n${view.panels.length}`}>
        {view.panels.map((panel, n) =>
          panel.type === "clip" ? (
            <Clip
              key={panel.option}
              panel={panel}
              number={clips.length > 2 ? n + 1 : 0}
              name={clips.length > 1 ? `Clip ${n + 1} of ${clips.length}` : "Clip"}
              video={(element) => (videos.current[n] = element)}
              broken={broken}
            />
          ) : (
            <article key={panel.option} class="panel" tabIndex={0} aria-label={nameOf(n, texts.length)}>
              {texts.length > 1 && <h2>{nameOf(n, texts.length)}</h2>}
              {differing ? (
                <Differing text={panel.text} other={texts[1 - n].text} />
              ) : (
                <Markdown text={panel.text} />
              )}
            </article>
          ),
        )}
      </div>
      {clips.some((clip) => clip.frames > 1) && <Player playback={playback} perFrame={perFrame} />}
      {texts.length === 2 && (
        <div class="player">
          <button type="button" aria-pressed={differing} onClick={() => setDiffering(!differing)}>
            <Key of="d" /> Show differences
          </button>
        </div>
      )}
      <Control
        control={view.control}
        id={question.id}
        before={question.before}
        shown={active}
        answer={(value) => say({ value })}
        played={played}
        videos={videos}
        clip={clips[0]}
        playback={playback}
      />
      {view.cannot_tell && (
        <button
          type="button"
          class="choice quiet"
          aria-pressed={question.before?.cannot_tell || undefined}
          onClick={cannotTell}
        >
          <Key of={view.cannot_tell.key} />
          <span>{view.cannot_tell.label}</span>
        </button>
      )}
      {view.help && (
        <details class="help">
          <summary>How to judge</summary>
          <Markdown text={view.help} />
        </details>
      )}
    </section>
  );
}

const nameOf = (n, of) => (of === 1 ? "Text" : of === 2 ? ["Left", "Right"][n] : `Number ${n + 1}`);

function Clip({ panel, number, name, video, broken }) {
  const [fault, setFault] = useState("");
  const [tries, setTries] = useState(0);
  const failed = () => {
    if (tries < 2) setTimeout(() => setTries(tries + 1), 500 * (tries + 1));
    else setFault("This clip cannot be played.");
  };
  return (
    <figure class="panel clip">
      {number > 0 && (
        <kbd class="number" aria-hidden>
          {number}
        </kbd>
      )}
      <video
        ref={video}
        src={`/clips/${panel.clip}${tries ? `?try=${tries}` : ""}`}
        width={panel.width}
        height={panel.height}
        aria-label={name}
        muted
        playsInline
        preload="auto"
        disablePictureInPicture
        disableRemotePlayback
        onError={failed}
      />
      {fault && (
        <figcaption class="fault">
          {fault} <button onClick={() => broken(`${panel.clip}: cannot be played`)}>Next question</button>
        </figcaption>
      )}
    </figure>
  );
}

function Player({ playback, perFrame }) {
  return (
    <div class="player" role="group" aria-label="Playback">
      <button type="button" onClick={playback.toggle}>
        <Key of=" " /> {playback.playing ? "Pause" : "Play"}
      </button>
      {!perFrame && (
        <>
          <button type="button" onClick={playback.restart}>
            <Key of="r" /> Restart
          </button>
          <button type="button" onClick={() => playback.step(-1)}>
            <Key of="," /> Picture back
          </button>
          <button type="button" onClick={() => playback.step(1)}>
            <Key of="." /> Picture on
          </button>
          <span class="rates" role="group" aria-label="Speed">
            <Key of="-" />
            {RATES.map((rate) => (
              <button
                key={rate}
                type="button"
                aria-pressed={playback.rate === rate}
                onClick={() => playback.setRate(rate)}
              >
                {rate}×
              </button>
            ))}
            <Key of="+" />
          </span>
        </>
      )}
    </div>
  );
}
