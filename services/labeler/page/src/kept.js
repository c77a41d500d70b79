// What the browser keeps for this page; where it does not let it, as long as the page is open.

const here = new Map();

export function read(key) {
  try {
    return here.get(key) ?? localStorage.getItem(key);
  } catch {
    return here.get(key) ?? null;
  }
}

export function write(key, text) {
  try {
    localStorage.setItem(key, text);
    here.delete(key);
  } catch {
    here.set(key, text); // blocked, or full
  }
}

export function remove(key) {
  here.delete(key);
  try {
    localStorage.removeItem(key);
  } catch {
    // nothing was kept
  }
}

/** When this tab first asked for that, in ms since the epoch: the same after a reload. */
export function since(name) {
  try {
    sessionStorage.setItem(name, sessionStorage.getItem(name) ?? Date.now());
    return Number(sessionStorage.getItem(name));
  } catch {
    return Date.now();
  }
}
