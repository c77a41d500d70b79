// Coming in by an invite, and what those see who have none.

import { useEffect, useState } from "preact/hooks";

import { get, post } from "./api.js";

export function Invite({ token, entered }) {
  const [invited, setInvited] = useState(null); // {role, name}
  const [refused, setRefused] = useState(null);
  const [name, setName] = useState("");
  const [fault, setFault] = useState("");
  const [busy, setBusy] = useState(false);
  const look = () => {
    setRefused(null);
    get(`/api/invite/${encodeURIComponent(token)}`).then(setInvited, setRefused);
  };
  useEffect(look, []);
  const enter = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      const { role } = await post("/api/session", { invite: token, name: name.trim() });
      entered(role);
    } catch (error) {
      setFault(error.message);
      setBusy(false);
    }
  };
  if (refused?.passes) return <Trouble words={refused.message} again={look} />;
  if (refused)
    return (
      <main class="alone">
        <h1>This link does not work</h1>
        <p role="alert">{refused.message}.</p>
      </main>
    );
  if (!invited) return null;
  return (
    <main class="alone">
      <form onSubmit={enter}>
        <h1>You are invited</h1>
        {invited.name ? (
          <p>
            Your answers teach a machine. They are kept under the name <b>{invited.name}</b>.
          </p>
        ) : (
          <>
            <p>Your answers teach a machine. Under which name shall they be kept?</p>
            <label>
              <span>Name</span>
              <input
                value={name}
                maxLength={200}
                autocomplete="nickname"
                autofocus
                onInput={(event) => setName(event.currentTarget.value)}
              />
            </label>
          </>
        )}
        {fault && (
          <p class="fault" role="alert">
            {fault}
          </p>
        )}
        <button type="submit" class="main" disabled={busy}>
          Begin
        </button>
      </form>
    </main>
  );
}

export function NoAccess() {
  return (
    <main class="alone">
      <h1>You need an invite</h1>
      <p>
        This page is for people who were sent a link. Open yours again, or ask whoever runs this service for a new
        one; the console that started it prints them.
      </p>
    </main>
  );
}

export function Trouble({ words, again }) {
  return (
    <main class="alone">
      <h1>Not just now</h1>
      <p role="alert">{words}</p>
      <button type="button" class="main" onClick={again}>
        Try again
      </button>
    </main>
  );
}
