// The page of those who answer: the question, the ones ahead, and where one stands.

import { useEffect, useReducer, useRef, useState } from "preact/hooks";

import { listen, remove } from "./api.js";
import { isPadHeld } from "./controls.jsx";
import { Guide, wasGuided } from "./guide.jsx";
import { since } from "./kept.js";
import { Key, useFreeKeys, useKeys } from "./keys.jsx";
import { Outbox } from "./outbox.js";
import { Question } from "./question.jsx";
import { Questions } from "./questions.js";

const AWAY_MS = 5 * 60 * 1000; // without a key or a touch: the questions go to others
const WARNED_MS = 30 * 1000; // before that
const REMEMBERED = 20; // answers that can be taken back from here
const TAKEN = ["accepted", "duplicate"]; // what becomes of an answer that counts, or of one sent again

export function Labelling({ me, signedOut }) {
  const [, refresh] = useReducer((n) => n + 1, 0);
  const [state, setState] = useState(me); // open, answered, paused, draining
  const [connected, setConnected] = useState(true);
  const [notice, setNotice] = useState("");
  const [fault, setFault] = useState(null);
  const [guide, setGuide] = useState(null);
  const [away, setAway] = useState(false);
  const given = useRef([]); // {question, answer}: given here, the latest last
  const parts = useRef(null);

  useEffect(() => {
    const failed = (error) => {
      if (error.status === 401) return signedOut();
      setFault(error);
      if (error.bans) questions.forget();
    };
    const heard = ({ open, answered, paused, draining }) => setState({ open, answered, paused, draining });
    const said = (now) => {
      setFault(null);
      heard(now);
    };
    const cannotTakeBack = (question, why) => {
      setNotice(`That answer can no longer be taken back${why}.`);
      questions.drop([question]);
    };
    const isOpen = (question) => {
      given.current = given.current.filter((one) => one.question.id !== question);
      questions.release(question);
    };
    const outbox = new Outbox(`${me.labeler}:${me.annotator}`, {
      changed: refresh,
      delivered: ({ question, undo }, now) => {
        if (undo && now.late) cannotTakeBack(question, "");
        if (undo) return;
        setState((old) => ({ ...old, answered: Math.max(old.answered, now.answered) }));
        if (TAKEN.includes(now.outcome)) return;
        setNotice("That answer came too late: the question had gone to somebody else.");
        isOpen(question);
      },
      refused: ({ question, undo }, error) => {
        if (error.bans) return failed(error);
        if (undo) return cannotTakeBack(question, `: ${error.message}`);
        setNotice(`An answer was not taken: ${sentence(error.message)}`);
        isOpen(question);
      },
      signedOut,
      elsewhere: (ids) => questions.drop(ids),
    });
    const questions = new Questions({
      unsent: () => outbox.questions,
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
        heard(now);
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

  const leaves = useAway(
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
  const waiting = outbox?.waiting ?? [];
  const answers = state.answered + waiting.filter((one) => !one.undo).length;
  const [first] = state.paused && !state.draining ? [] : list; // in a pause what is held is not shown
  const name = me.run || "Tutelage";

  useEffect(() => {
    document.title = `${first ? "A question" : "Waiting"} · ${name}`; // for who looks at another tab
  }, [!first]);

  useEffect(() => {
    if (first && !wasGuided(first)) setGuide(first);
  }, [first?.kind, first?.view.control.type]);

  const next = (answer) => {
    given.current = [...given.current.slice(1 - REMEMBERED), { question: first, answer }];
    questions.next();
  };
  const answered = (answer) => {
    outbox.add(answer);
    next(answer);
  };
  const undo = () => {
    const last = given.current.pop();
    if (!last) return setNotice("There is no answer to take back.");
    outbox.takeBack(last.question.id);
    questions.again({ ...last.question, before: last.answer });
  };
  const canAct = !guide && !away;
  useFreeKeys();
  useKeys({ z: undo, "?": () => first && setGuide(first) }, canAct);

  return (
    <>
      <header>
        <strong>{name}</strong>
        <span class="figure">
          <b>{answers}</b> answered
        </span>
        <span class="figure">
          <b>{state.open + list.length}</b> open
        </span>
        <Clock began={since(`tutelage-began:${me.labeler}:${me.annotator}`)} />
        <span class="space" />
        {waiting.length > 1 || (waiting.length && outbox.fault) ? (
          <button type="button" class="badge" onClick={outbox.retry} title={outbox.fault}>
            unsent: {waiting.length}
          </button>
        ) : null}
        {!connected && <Offline kept={first && questions.keptUntil} />}
        <button type="button" onClick={undo} disabled={!given.current.length}>
          <Key of="z" /> Undo
        </button>
        <button type="button" onClick={() => first && setGuide(first)} disabled={!first} aria-label="How it works">
          <Key of="?" /> <span class="touch">?</span>
        </button>
        <span class="figure">
          as <b>{me.annotator}</b>
        </span>
        {me.access && (
          <button type="button" onClick={() => remove("/api/session").then(signedOut, (error) => setNotice(error.message))}>
            Sign out
          </button>
        )}
        {me.role === "operator" && <a href="/operator">Operator</a>}
      </header>
      <p class="unseen" aria-live="polite">
        {first && `Question ${answers + 1}: ${first.view.prompt}`}
      </p>
      <main>
        {(first ? list : []).slice(0, 4).map((question, n) => (
          <Question
            key={question.id}
            question={question}
            shown={n === 0}
            active={n === 0 && canAct && !(isPlayed(question) && outbox.questions.includes(question.id))}
            said={answered}
            played={() => next()}
            broken={(why) => questions.giveBack(why)}
          />
        ))}
        {!first && <Empty state={state} fault={fault} />}
      </main>
      <p class="notice" role="status">
        {notice}
      </p>
      {leaves !== null && !away && (
        <p class="notice" role="timer">
          Still there? Your questions go to others in {minutes(leaves)}.
        </p>
      )}
      {guide && <Guide question={guide} done={() => setGuide(null)} />}
      {away && (
        <div class="curtain">
          <p>You were away, so your questions went to others. Press any key to go on.</p>
        </div>
      )}
    </>
  );
}

/** The service plays along, once it has been told what was taken back. */
const isPlayed = (question) => question.view.control.type === "play";

/** Words of the service, with a full stop. */
const sentence = (words) => (/[.!?]$/.test(words) ? words : `${words}.`);

function Empty({ state, fault }) {
  if (fault?.bans)
    return (
      <div class="empty" role="alert">
        <h1>You are banned</h1>
        <p>
          You are asked nothing more here, and what you had went to others; answers that you gave are kept. If that
          is a mistake, ask who runs this labeler.
        </p>
      </div>
    );
  if (fault)
    return (
      <div class="empty" role="alert">
        <h1>Not just now</h1>
        <p>{sentence(fault.message)} The page tries again by itself; answers that you gave are kept.</p>
      </div>
    );
  const why = state.answered
    ? "You have answered all that there are for you."
    : "Nothing is asked yet, or others are answering it.";
  const pause = state.draining
    ? "Whoever runs this is ending it: nothing new is asked."
    : "Whoever runs this has paused it. A question that you have is kept while this page is open.";
  return (
    <div class="empty">
      <h1>{state.paused ? "Paused" : "No questions at the moment"}</h1>
      <p>
        {state.paused ? pause : why} You can leave this page open: the next question
        appears by itself, and the title of this tab says so.
      </p>
    </div>
  );
}

const minutes = (seconds) => `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;

function useSeconds(now) {
  const latest = useRef(now);
  latest.current = now;
  const [seconds, setSeconds] = useState(now);
  useEffect(() => {
    const timer = setInterval(() => setSeconds(latest.current()), 1000);
    return () => clearInterval(timer);
  }, []);
  return seconds;
}

function Clock({ began }) {
  const seconds = useSeconds(() => Math.max(0, Math.floor((Date.now() - began) / 1000)));
  return (
    <span class="figure" role="timer" aria-label="Time in this session">
      {minutes(seconds)}
    </span>
  );
}

/** kept: until when the questions here are not given to others, by performance.now(). */
function Offline({ kept }) {
  const seconds = useSeconds(() => Math.max(0, Math.ceil((kept - performance.now()) / 1000)));
  return <span class="badge">offline{kept && seconds ? `; questions kept for ${minutes(seconds)}` : ""}</span>;
}

/** Calls leave() when nobody has done anything for long, and comeBack() when somebody does; the seconds until it
    will leave, shortly before that, else null. */
function useAway(leave, comeBack) {
  const calls = useRef({});
  calls.current = { leave, comeBack };
  const [left, setLeft] = useState(null);
  useEffect(() => {
    let at = Date.now();
    let gone = false;
    const here = () => {
      at = Date.now();
      setLeft(null);
      if (gone) calls.current.comeBack();
      gone = false;
    };
    const look = () => {
      if (isPadHeld()) here();
      const ms = at + AWAY_MS - Date.now();
      setLeft(ms < WARNED_MS ? Math.max(0, Math.ceil(ms / 1000)) : null);
      if (ms > 0 || gone) return;
      gone = true;
      calls.current.leave();
    };
    const timer = setInterval(look, 200);
    const names = ["keydown", "pointerdown", "pointermove"];
    names.forEach((name) => addEventListener(name, here));
    return () => {
      clearInterval(timer);
      names.forEach((name) => removeEventListener(name, here));
    };
  }, []);
  return left;
}
