// Answers on their way: kept by the browser until the service has them, whatever happens to the page.
// What was sent once may have arrived even if nobody said so: it is only taken back by telling the service.
// The service counts an answer once however often it is sent, so sending again in the same order is always safe.

import { post } from "./api.js";
import { read, remove, write } from "./kept.js";

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 15000;

export class Outbox {
  /** name: whose answers, and to which labeler; changed(outbox): called whenever something is different;
      delivered(answer, said), refused(answer, fault): what became of one, `answer.undo` of one taken back;
      elsewhere(questions): another tab has answered these. */
  constructor(name, { changed, delivered, refused, signedOut, elsewhere }) {
    this.key = `tutelage-unsent:${name}`;
    this.told = { changed, delivered, refused, signedOut, elsewhere };
    this.pause = FIRST_PAUSE_MS;
    this.busy = false;
    this.sending = null;
    this.timer = 0;
    this.fault = "";
    addEventListener("online", this.retry);
    addEventListener("storage", this.noticed);
    this.send();
  }

  close() {
    clearTimeout(this.timer);
    removeEventListener("online", this.retry);
    removeEventListener("storage", this.noticed);
  }

  /** What is not delivered yet, in order: {question, ...} is an answer, {question, undo: true} one taken back;
      `tried`: sent already, once or more. */
  get waiting() {
    try {
      return JSON.parse(read(this.key)) ?? [];
    } catch {
      return [];
    }
  }

  set waiting(waiting) {
    if (waiting.length) write(this.key, JSON.stringify(waiting));
    else remove(this.key);
    this.told.changed(this);
  }

  /** Those that are not. */
  get questions() {
    return this.waiting.map((one) => one.question);
  }

  add(answer) {
    this.waiting = [...this.waiting, answer];
    this.send();
  }

  takeBack(question) {
    const untold = this.waiting.findLast((one) => one.question === question && !one.undo && !one.tried);
    if (untold) this.waiting = this.waiting.filter((one) => !same(one, untold));
    else this.add({ question, undo: true });
  }

  noticed = (event) => {
    if (event.key !== this.key) return;
    this.told.elsewhere(this.waiting.filter((one) => !one.undo).map((one) => one.question));
    this.told.changed(this);
  };

  retry = () => {
    clearTimeout(this.timer);
    this.pause = FIRST_PAUSE_MS;
    this.send();
  };

  async send() {
    if (this.busy) return;
    this.busy = true;
    const done = await alone(this.key, () => this.sendAll());
    this.busy = false;
    if (done) {
      if (this.waiting.length) this.send(); // given as the last one was done
      return;
    }
    this.timer = setTimeout(() => this.send(), this.pause);
    this.pause = Math.min(2 * this.pause, LONGEST_PAUSE_MS);
    this.told.changed(this);
  }

  /** False: to be tried again in a while. */
  async sendAll() {
    let next;
    while ((next = this.waiting[0])) {
      const { tried, undo, ...answer } = next;
      if (!tried) write(this.key, JSON.stringify([{ ...next, tried: true }, ...this.waiting.slice(1)]));
      try {
        const said = await (undo ? post("/api/undo", answer) : post("/api/answer", { ...answer, sent_at: Date.now() / 1000 }));
        this.told.delivered(next, said);
      } catch (fault) {
        this.fault = fault.message;
        if (fault.status === 401) this.told.signedOut();
        if (fault.passes || fault.status === 401) return false;
        this.told.refused(next, fault);
      }
      this.pause = FIRST_PAUSE_MS;
      this.fault = "";
      this.waiting = this.waiting.filter((one) => !same(one, next));
    }
    return true;
  }
}

const same = (one, other) =>
  one.question === other.question && one.undo === other.undo && one.shown_at === other.shown_at;

/** No two tabs send at once, where browsers have locks: else one could take back what the other has just sent. */
const alone = (name, work) => (navigator.locks ? navigator.locks.request(name, work) : work());
