// Answers on their way: kept by the browser until the service has them, whatever happens to the page.
// The service counts an answer once however often it is sent, so sending it again is always safe.

import { post } from "./api.js";
import { read, remove, write } from "./kept.js";

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 15000;

export class Outbox {
  /** annotator: whose answers; changed(outbox): called whenever something is different;
      delivered(answer, said), refused(answer, fault): what became of one;
      elsewhere(questions): another tab has answered these. */
  constructor(annotator, { changed, delivered, refused, signedOut, elsewhere }) {
    this.key = `tutelage-unsent:${annotator}`;
    this.told = { changed, delivered, refused, signedOut, elsewhere };
    this.pause = FIRST_PAUSE_MS;
    this.sending = null;
    this.request = Promise.resolve();
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

  get answers() {
    try {
      return JSON.parse(read(this.key)) ?? [];
    } catch {
      return [];
    }
  }

  set answers(answers) {
    if (answers.length) write(this.key, JSON.stringify(answers));
    else remove(this.key);
    this.told.changed(this);
  }

  add(answer) {
    this.answers = [...this.answers.filter((one) => one.question !== answer.question), answer];
    this.send();
  }

  /** Take back what is not sent yet; false: it is, or is just being sent. */
  remove(question) {
    if (this.sending === question || !this.answers.some((one) => one.question === question)) return false;
    this.answers = this.answers.filter((one) => one.question !== question);
    return true;
  }

  /** When what is just being sent has arrived, or has not. */
  settled() {
    return this.request.catch(() => {});
  }

  noticed = (event) => {
    if (event.key !== this.key) return;
    this.told.elsewhere(this.answers.map((one) => one.question));
    this.told.changed(this);
  };

  retry = () => {
    clearTimeout(this.timer);
    this.pause = FIRST_PAUSE_MS;
    this.send();
  };

  async send() {
    if (this.sending !== null) return;
    let answer;
    while ((answer = this.answers[0])) {
      this.sending = answer.question;
      let done = true;
      try {
        this.request = post("/api/answer", answer);
        const said = await this.request;
        this.told.delivered(answer, said);
      } catch (fault) {
        done = !fault.passes && fault.status !== 401;
        this.fault = fault.message;
        if (done) this.told.refused(answer, fault);
        else if (fault.status === 401) this.told.signedOut();
      }
      this.sending = null;
      if (!done) {
        this.timer = setTimeout(() => this.send(), this.pause);
        this.pause = Math.min(2 * this.pause, LONGEST_PAUSE_MS);
        this.told.changed(this);
        return;
      }
      this.pause = FIRST_PAUSE_MS;
      this.fault = "";
      const sent = answer.question;
      this.answers = this.answers.filter((one) => one.question !== sent);
    }
  }
}
