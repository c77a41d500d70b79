// The page of those who answer: the question, the ones ahead, and where one stands.

import { useEffect, useReducer, useRef, useState } from "preact/hooks";

import { listen, post } from "./api.js";
import { Guide, wasGuided } from "./guide.jsx";
import { Key, useFreeKeys, useKeys } from "./keys.jsx";
import { Outbox } from "./outbox.js";
import { Question } from "./question.jsx";
import { Questions } from "./questions.js";

const AWAY_MS = 5 * 60 * 1000; // without a key or a touch: the questions go to others
const REMEMBERED = 20; // answers that can be taken back from here

export function Labelling({ me, signedOut }) {
  const [, refresh] = useReducer((n) => n + 1, 0);
  const [state, setState] = useState({ open: me.open, answered: me.answered, paused: me.paused });
  const [connected, setConnected] = useState(true);
  const [notice, setNotice] = useState("");
  const [fault, setFault] = useState("");
  const [guide, setGuide] = useState(null);
  const [away, setAway] = useState(false);
  const given = useRef([]); // questions answered here, the latest last
  const parts = useRef(null);

  useEffect(() => {
    const failed = (error) => {
      if (error.status === 401) signedOut();
      else setFault(error.message);
    };
    const said = (now) => {
      setFault("");
      setState({ open: now.open, answered: now.answered, paused: now.paused });
    };
    const outbox = new Outbox(me.annotator, {
      changed: refresh,
      delivered: (_, now) => {
        setState((old) => ({ ...old, answered: Math.max(old.answered, now.answered) }));
        if (now.outcome === "lost") setNotice("That answer came too late: others had answered meanwhile.");
      },
      refused: (_, error) => setNotice(`An answer was not taken: ${error.message}`),
      signedOut,
      elsewhere: (ids) => questions.drop(ids),
    });
    const questions = new Questions({
      unsent: () => outbox.answers.map((one) => one.question),
      changed: refresh,
      said,
      failed,
      lost: () => setNotice("That question has gone to somebody else; here is the next one."),
    });
    parts.current = { outbox, questions };
    questions.refill();
    const close = listen(
      "/api/events",
      "state",
      (now) => {
        said(now);
        if (now.open && !now.paused && !questions.list.length) questions.refill();
      },
      setConnected,
    );
    refresh();
    return () => {
      close();
      questions.close();
      outbox.close();
    };
  }, []);

  useEffect(() => {
    if (!notice) return;
    const timer = setTimeout(() => setNotice(""), 6000);
    return () => clearTimeout(timer);
  }, [notice]);

  useAway(
    () => {
      parts.current.questions.leave();
      setAway(true);
    },
    () => {
      setAway(false);
      parts.current.questions.comeBack();
    },
  );

  const { outbox, questions } = parts.current ?? {};
  const list = questions?.list ?? [];
  const unsent = outbox?.answers.length ?? 0;
  const [first] = list;

  useEffect(() => {
    if (first && !wasGuided(first.kind)) setGuide(first);
  }, [first?.kind]);

  const answered = (answer) => {
    given.current = [...given.current.slice(1 - REMEMBERED), first];
    outbox.add(answer);
    questions.next();
  };
  const undo = async () => {
    const last = given.current.at(-1);
    if (!last) return setNotice("There is no answer to take back.");
    given.current = given.current.slice(0, -1);
    if (outbox.remove(last.id)) return questions.again(last);
    await outbox.settled();
    if (outbox.remove(last.id)) return questions.again(last);
    try {
      const { undone } = await post("/api/undo", { question: last.id });
      if (undone) questions.again(last);
      else setNotice("That answer can no longer be taken back.");
    } catch (error) {
      given.current = [...given.current, last];
      setNotice(error.message);
    }
  };
  const canAct = !guide && !away;
  useFreeKeys();
  useKeys({ z: undo, "?": () => first && setGuide(first) }, canAct);

  return (
    <>
      <header>
        <strong>{me.run || "Tutelage"}</strong>
        <span class="figure">
          <b>{state.answered + unsent}</b> answered
        </span>
        <span class="figure">
          <b>{Math.max(state.open, list.length)}</b> open
        </span>
        <Clock />
        <span class="space" />
        {unsent > 1 || (unsent && outbox.fault) ? (
          <button type="button" class="badge" onClick={outbox.retry} title={outbox.fault}>
            unsent: {unsent}
          </button>
        ) : null}
        {!connected && <span class="badge">offline</span>}
        <button type="button" onClick={undo} disabled={!given.current.length}>
          <Key of="z" /> Undo
        </button>
        <button type="button" onClick={() => first && setGuide(first)} disabled={!first} aria-label="How it works">
          <Key of="?" />
        </button>
        {me.role === "operator" && <a href="/operator">Operator</a>}
      </header>
      <p class="unseen" aria-live="polite">
        {first && `Question ${state.answered + unsent + 1}: ${first.view.prompt}`}
      </p>
      <main>
        {list.slice(0, 4).map((question, n) => (
          <Question
            key={question.id}
            question={question}
            shown={n === 0}
            active={n === 0 && canAct}
            said={answered}
            skipped={() => questions.next()}
            broken={(why) => questions.giveBack(why)}
          />
        ))}
        {!first && <Empty state={state} fault={fault} />}
      </main>
      <p class="notice" role="status">
        {notice}
      </p>
      {guide && <Guide kind={guide.kind} screens={guide.view.guide} done={() => setGuide(null)} />}
      {away && (
        <div class="curtain">
          <p>You were away, so your questions went to others. Press any key to go on.</p>
        </div>
      )}
    </>
  );
}

function Empty({ state, fault }) {
  if (fault)
    return (
      <div class="empty" role="alert">
        <h1>Not just now</h1>
        <p>{fault} The page tries again by itself; answers that you gave are kept.</p>
      </div>
    );
  return (
    <div class="empty">
      <h1>{state.paused ? "Paused" : "No questions at the moment"}</h1>
      <p>
        {state.paused ? "Whoever runs this has paused it." : "You have answered all that there are for you."} You can
        leave this page open: the next question appears by itself.
      </p>
    </div>
  );
}

function Clock() {
  const began = useRef(Date.now());
  const [seconds, setSeconds] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => setSeconds(Math.floor((Date.now() - began.current) / 1000)), 1000);
    return () => clearInterval(timer);
  }, []);
  const two = (n) => String(n).padStart(2, "0");
  return (
    <span class="figure" role="timer" aria-label="Time in this session">
      {Math.floor(seconds / 60)}:{two(seconds % 60)}
    </span>
  );
}

function useAway(leave, comeBack) {
  const calls = useRef({});
  calls.current = { leave, comeBack };
  useEffect(() => {
    let timer = 0;
    let gone = false;
    const here = () => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        gone = true;
        calls.current.leave();
      }, AWAY_MS);
      if (gone) calls.current.comeBack();
      gone = false;
    };
    here();
    const names = ["keydown", "pointerdown", "pointermove"];
    names.forEach((name) => addEventListener(name, here));
    return () => {
      clearTimeout(timer);
      names.forEach((name) => removeEventListener(name, here));
    };
  }, []);
}
