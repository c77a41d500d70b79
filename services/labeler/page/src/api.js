// What the page asks the service for.

export class ServiceFault extends Error {
  /** status: of the response; 0 where there was none. */
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }

  /** Whether whoever asks is asked nothing any more. */
  get bans() {
    return this.status === 403 && this.message.startsWith("you are banned");
  }

  /** Whether the same request may go through later. */
  get passes() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

const AGAIN_MS = 3000;
let csrf = "";
let annotator = "";
let leaving = false; // the page begins anew

export async function call(method, path, body, again = true) {
  const before = annotator; // what is said is theirs, whoever another call finds signed in meanwhile
  const headers = { "X-Tutelage-CSRF": csrf };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new ServiceFault(0, "The service cannot be reached.");
  }
  const said = await response.json().catch(() => ({}));
  if (response.status === 403 && again && `${said.detail}`.startsWith("X-Tutelage-CSRF")) {
    // Another tab has signed in meanwhile: the same person goes on; for somebody else the page begins anew, and
    // what this one had to say waits for them to come back.
    if ((await whoAmI()).annotator === before) return call(method, path, body, false);
    if (!leaving) location.reload();
    leaving = true;
    throw new ServiceFault(0, "Somebody else has signed in.");
  }
  if (!response.ok) throw new ServiceFault(response.status, said.detail ?? response.statusText);
  return said;
}

export const get = (path) => call("GET", path);
export const remove = (path) => call("DELETE", path);
export const post = (path, body = {}) => call("POST", path, body);

/** Who I am; also keeps what has to be sent with every change. */
export async function whoAmI() {
  const me = await get("/api/me");
  ({ csrf, annotator } = me);
  return me;
}

/** Server-sent events of one name; returns what ends them. A browser connects again by itself when it loses
    them, but not when it is refused. */
export function listen(path, event, heard, opened = () => {}) {
  let source;
  let timer = 0;
  const open = () => {
    source = new EventSource(path);
    source.addEventListener(event, (message) => heard(JSON.parse(message.data)));
    source.addEventListener("open", () => opened(true));
    source.addEventListener("error", () => {
      opened(false);
      if (source.readyState === EventSource.CLOSED) timer = setTimeout(open, AGAIN_MS);
    });
  };
  open();
  return () => {
    clearTimeout(timer);
    source.close();
  };
}
