// What the page asks the service for.

export class ServiceFault extends Error {
  /** status: of the response; 0 where there was none. */
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }

  /** Whether the same request may go through later. */
  get passes() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

let csrf = "";

export async function call(method, path, body) {
  const headers = { "X-Tutelage-CSRF": csrf };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new ServiceFault(0, "The service cannot be reached.");
  }
  const said = await response.json().catch(() => ({}));
  if (!response.ok) throw new ServiceFault(response.status, said.detail ?? response.statusText);
  return said;
}

export const get = (path) => call("GET", path);
export const post = (path, body = {}) => call("POST", path, body);

/** Who I am; also keeps what has to be sent with every change. */
export async function whoAmI() {
  const me = await get("/api/me");
  csrf = me.csrf;
  return me;
}

/** Server-sent events of one name; returns what ends them. The browser connects again by itself. */
export function listen(path, event, heard, opened = () => {}) {
  const source = new EventSource(path);
  source.addEventListener(event, (message) => heard(JSON.parse(message.data)));
  source.addEventListener("open", () => opened(true));
  source.addEventListener("error", () => opened(false));
  return () => source.close();
}
