// What those see who look after the questions: how it goes, who answers how, and what can be done about it.

import { useEffect, useState } from "preact/hooks";

import { get, listen, post } from "./api.js";
import { Curve } from "./curve.jsx";

const RUN_MS = 10000;
const LOW_GOLD = 0.7;
const FEW = 20; // questions that several have answered: below, α is mostly chance

export function Operator({ me, signedOut }) {
  const [figures, setFigures] = useState(null);
  const [run, setRun] = useState({ known: false, curve: [], video: null });
  const [audit, setAudit] = useState([]);
  const [connected, setConnected] = useState(true);
  const [fault, setFault] = useState("");

  const failed = (error) => (error.status === 401 ? signedOut() : setFault(error.message));
  const look = () => {
    get("/api/operator/run").then(setRun, failed);
    get("/api/operator/audit").then(setAudit, failed);
  };
  useEffect(() => {
    get("/api/operator/statistics").then(setFigures, failed);
    look();
    const timer = setInterval(look, RUN_MS);
    const close = listen("/api/operator/events", "statistics", setFigures, setConnected);
    return () => {
      clearInterval(timer);
      close();
    };
  }, []);
  const act = async (path, body) => {
    setFault("");
    try {
      const said = await post(`/api/operator/${path}`, body);
      setFigures(await get("/api/operator/statistics"));
      look();
      return said;
    } catch (error) {
      failed(error);
    }
  };

  if (me.role !== "operator")
    return (
      <main class="alone">
        <h1>For operators</h1>
        <p>
          You are signed in as {me.annotator}, who answers questions. <a href="/">Go to the questions.</a>
        </p>
      </main>
    );
  return (
    <>
      <header>
        <strong>{me.run || "Tutelage"}</strong>
        <span class="space" />
        {!connected && <span class="badge">offline</span>}
        {run.known && <a href="/live">Watch and take over</a>}
        <a href="/">Questions</a>
      </header>
      <main class="operator">
        <h1 class="unseen">Operator</h1>
        {fault && (
          <p class="fault" role="alert">
            {fault}
          </p>
        )}
        {figures && <Alerts alerts={figures.alerts} />}
        {figures && <Queue figures={figures} act={act} />}
        {run.known && (
          <div class="columns">
            <section>
              <h2>Learning curve</h2>
              <Curve points={run.curve} />
            </section>
            <section>
              <h2>Newest policy</h2>
              {run.video ? (
                <video src={run.video} controls muted loop playsInline aria-label="The newest policy" />
              ) : (
                <p class="none">No video yet.</p>
              )}
            </section>
          </div>
        )}
        {figures && <Annotators figures={figures} act={act} />}
        {figures && <Dead dead={figures.dead} act={act} />}
        <div class="columns">
          <Invites act={act} />
          <Export />
        </div>
        <Audit lines={audit} />
      </main>
    </>
  );
}

function Alerts({ alerts }) {
  return (
    <ul class="alerts" aria-live="polite">
      {alerts.map((alert) => (
        <li key={alert}>{alert}</li>
      ))}
    </ul>
  );
}

function Queue({ figures, act }) {
  const { queue, depth } = figures;
  const kinds = Object.entries(depth);
  return (
    <section aria-labelledby="queue">
      <h2 id="queue">Questions</h2>
      <dl class="figures">
        <Figure name="open" value={queue.open} note={kinds.map(([kind, n]) => `${n} ${kind}`).join(", ")} />
        <Figure name="being answered" value={queue.leased} />
        <Figure name="answered" value={queue.answered - queue.undone} />
        <Figure name="answers a minute" value={figures.answers_per_minute.toFixed(1)} />
        <Figure name="oldest waits" value={span(figures.oldest_wait_s)} />
        <Figure name="cannot be answered" value={queue.dead} bad={queue.dead > 0} />
      </dl>
      <div class="row">
        {queue.paused ? (
          <button type="button" class="main" onClick={() => act("resume")}>
            Resume
          </button>
        ) : (
          <>
            <button type="button" onClick={() => act("pause")}>
              Pause
            </button>
            <button type="button" onClick={() => act("drain")}>
              Drain
            </button>
          </>
        )}
        <small>
          {queue.draining
            ? `Drained: nobody is asked anything new. ${queue.leased} that people have are finished first.`
            : queue.paused
              ? "Paused: nobody is shown anything, not what they have either. Answers on their way are taken."
              : "Pause takes what people look at off their pages until you resume; drain lets them finish it."}
        </small>
      </div>
    </section>
  );
}

function Figure({ name, value, note = "", bad = false }) {
  return (
    <div class={bad ? "bad" : ""}>
      <dt>{name}</dt>
      <dd>
        {value} <small>{note}</small>
      </dd>
    </div>
  );
}

function Annotators({ figures, act }) {
  const alphas = Object.entries(figures.alpha).filter(([, one]) => one.alpha != null);
  const [said, setSaid] = useState("");
  const ban = (name, banned) => {
    if (!banned || confirm(`Ban ${name}? What they have goes to others; their answers stay.`))
      act("ban", { annotator: name, banned });
  };
  const revoke = async (name) => {
    if (!confirm(`End all sessions and tokens of ${name}? They need a new link to come back.`)) return;
    const revoked = await act("revoke", { name });
    if (revoked) setSaid(revoked.done ? `${name} is signed out.` : `${name} has no session and no token.`);
  };
  return (
    <section aria-labelledby="annotators">
      <h2 id="annotators">Annotators</h2>
      <div class="wide" tabindex="0" role="region" aria-label="Table of annotators">
        <table>
          <thead>
            <tr>
              <th scope="col">who</th>
              <th scope="col" class="n">answers</th>
              <th scope="col" class="n">known ones right</th>
              <th scope="col" class="n">same when asked again</th>
              <th scope="col" class="n">left</th>
              <th scope="col" class="n">ties</th>
              <th scope="col" class="n">can't tell</th>
              <th scope="col" class="n">median time</th>
              <th scope="col">
                <span class="unseen">what to do</span>
              </th>
            </tr>
          </thead>
          <tbody>
            {figures.annotators.map((one) => (
              <tr key={one.name} class={one.banned ? "banned" : ""}>
                <th scope="row">
                  <i class={one.active ? "dot active" : "dot"} title={one.active ? "active" : "away"} /> {one.name}
                </th>
                <td class="n" data-name="answers">{one.answers}</td>
                <td data-name="known ones right" class={`n ${one.gold && one.gold_high < LOW_GOLD ? "bad" : ""}`}>
                  <Share part={one.gold_right} of={one.gold} low={one.gold_low} high={one.gold_high} />
                </td>
                <td class="n" data-name="same when asked again">
                  <Share part={one.consistent} of={one.repeats} />
                </td>
                <td data-name="left" class={`n ${one.left_low > 0.5 || one.left_high < 0.5 ? "bad" : ""}`}>
                  {percent(one.left_share)}{" "}
                  {one.left_share != null && (
                    <small>
                      {percent(one.left_low)}–{percent(one.left_high)}
                    </small>
                  )}
                </td>
                <td class="n" data-name="ties">{percent(one.tie_share)}</td>
                <td class="n" data-name="can't tell">{percent(one.cannot_tell_share)}</td>
                <td class="n" data-name="median time">{one.median_s == null ? "" : `${one.median_s.toFixed(1)} s`}</td>
                <td>
                  <button type="button" onClick={() => ban(one.name, !one.banned)}>
                    {one.banned ? "Unban" : "Ban"}
                  </button>{" "}
                  <button
                    type="button"
                    title="End the sessions and tokens"
                    onClick={() => revoke(one.name)}
                  >
                    Revoke
                  </button>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <p role="status" class="none">
        {said}
      </p>
      {!figures.annotators.length && <p class="none">Nobody has answered yet.</p>}
      {alphas.length > 0 && (
        <p>
          Agreement (Krippendorff's α):{" "}
          {alphas.map(([kind, one]) => `${kind} ${one.alpha.toFixed(2)}, ${counted(one.questions)}`).join("; ")}
        </p>
      )}
    </section>
  );
}

const counted = (n) => `${n} question${n === 1 ? "" : "s"}${n < FEW ? `, too few to go by (${FEW} and more)` : ""}`;

function Share({ part, of, low, high }) {
  if (!of) return null;
  return (
    <>
      {percent(part / of)}{" "}
      <small>{low == null ? `of ${of}` : `${percent(low)}–${percent(high)}, of ${of}`}</small>
    </>
  );
}

function Dead({ dead, act }) {
  if (!dead.length) return null;
  return (
    <section aria-labelledby="dead">
      <h2 id="dead">Cannot be answered</h2>
      <ul class="dead">
        {dead.map((one) => (
          <li key={one.id}>
            <code>{one.id}</code> {one.why}{" "}
            <button type="button" onClick={() => act("requeue", { question: one.id })}>
              Ask again
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}

function Invites({ act }) {
  const [role, setRole] = useState("annotator");
  const [uses, setUses] = useState(1);
  const [link, setLink] = useState("");
  const [copied, setCopied] = useState(false);
  const make = async (event) => {
    event.preventDefault();
    const made = await act("invite", { role, uses });
    if (made) setLink(new URL(made.url, location.href).href);
    setCopied(false);
  };
  const copy = () => navigator.clipboard?.writeText(link).then(() => setCopied(true), () => {});
  return (
    <section aria-labelledby="invites">
      <h2 id="invites">Invite</h2>
      <form class="row" onSubmit={make}>
        <label>
          <span>as</span>
          <select value={role} onChange={(event) => setRole(event.currentTarget.value)}>
            <option value="annotator">annotator</option>
            <option value="operator">operator</option>
          </select>
        </label>
        <label>
          <span>people</span>
          <input
            type="number"
            min="1"
            max="10000"
            value={uses}
            onInput={(event) => setUses(event.currentTarget.valueAsNumber || 1)}
          />
        </label>
        <button type="submit">Make a link</button>
      </form>
      {link && (
        <p class="link">
          <input readOnly value={link} aria-label="The link" onFocus={(event) => event.currentTarget.select()} />
          <button type="button" onClick={copy}>
            {copied ? "Copied" : "Copy"}
          </button>
        </p>
      )}
      <Revoke act={act} />
    </section>
  );
}

/** Of those who have not answered, and of links that went to the wrong people. */
function Revoke({ act }) {
  const [what, setWhat] = useState("");
  const [said, setSaid] = useState("");
  const revoke = async (event) => {
    event.preventDefault();
    const invite = what.split("/invite/")[1];
    if (!confirm(invite ? "Let nobody else in by this link?" : `End all sessions and tokens of ${what.trim()}?`)) return;
    const revoked = await act("revoke", invite ? { invite } : { name: what.trim() });
    if (!revoked) return;
    setSaid(revoked.done ? "Revoked." : "There was nothing to revoke.");
    if (revoked.done) setWhat("");
  };
  return (
    <form class="row" onSubmit={revoke}>
      <label>
        <span>a name, or a link</span>
        <input required value={what} onInput={(event) => setWhat(event.currentTarget.value)} />
      </label>
      <button type="submit">Revoke</button>
      <small role="status">{said}</small>
    </form>
  );
}

function Export() {
  return (
    <section aria-labelledby="export">
      <h2 id="export">Export</h2>
      <p class="row">
        <a href="/api/operator/export.jsonl" download>
          Answers as JSON lines
        </a>
        <a href="/api/operator/export.parquet" download>
          as Parquet
        </a>
      </p>
    </section>
  );
}

function Audit({ lines }) {
  return (
    <details class="audit">
      <summary>Who did what</summary>
      <ul>
        {lines.map((line, n) => {
          const { at, did, by, ...rest } = line;
          return (
            <li key={n}>
              <time>{at ? new Date(1000 * at).toLocaleString() : ""}</time> <b>{by}</b> {did}{" "}
              <small>
                {Object.entries(rest)
                  .map(([name, value]) => `${name}: ${value}`)
                  .join(", ")}
              </small>
            </li>
          );
        })}
      </ul>
    </details>
  );
}

const percent = (share) => (share == null ? "" : `${Math.round(100 * share)} %`);

function span(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
