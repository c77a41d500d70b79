// The questions that this page has: the one that is shown and some ahead, leased, kept, and taken back.

import { post } from "./api.js";

const AHEAD = 3;
const BEAT_MS = 20000;
const EMPTY_MS = 5000;
const AFTER_MS = 300;
const MOST = 16; // that the service leases to one annotator

export class Questions {
  /** unsent(): questions whose answers, or taking back, the service is not told yet; changed(): the list is
      another; said(state): {open, answered, paused, draining}; failed(fault); lost(): what was shown is somebody else's */
  constructor({ unsent, changed, said, failed, lost }) {
    this.list = [];
    this.answered = new Set(); // given here: they are not shown again should a lease still name them
    this.told = { unsent, changed, said, failed, lost };
    this.asking = null; // a request for questions
    this.keptUntil = 0; // by performance.now()
    this.away = false;
    this.beats = setInterval(() => this.beat(), BEAT_MS);
    this.looks = setInterval(() => !this.list.length && this.refill(), EMPTY_MS);
  }

  close() {
    clearInterval(this.beats);
    clearInterval(this.looks);
    clearTimeout(this.soon);
  }

  async refill() {
    if (this.asking || this.away || this.list.length > AHEAD) return;
    this.asking = this.ask();
    await this.asking;
    this.asking = null;
  }

  async ask() {
    try {
      const waiting = this.told.unsent();
      const n = Math.min(MOST, AHEAD + 1 + waiting.length);
      const said = await post("/api/lease", { n });
      this.keptUntil = performance.now() + 1000 * said.lease_s;
      const known = new Set([...this.list.map((one) => one.id), ...waiting, ...this.answered]);
      const more = said.questions.filter((one) => !known.has(one.id));
      this.list = [...this.list, ...more];
      this.told.said(said);
      this.told.changed();
    } catch (fault) {
      this.told.failed(fault);
    }
  }

  /** This one may be shown again: the service has no answer to it, and does not lease it if it shall not be. */
  async release(id) {
    await this.asking; // it may name it for the last time
    this.answered.delete(id);
    this.refill();
  }

  /** These have been answered in another tab. */
  drop(ids) {
    if (!this.list.some((one) => ids.includes(one.id))) return;
    this.list = this.list.filter((one) => !ids.includes(one.id));
    this.told.changed();
    this.refill();
  }

  /** The first has been answered. */
  next() {
    const [done, ...rest] = this.list;
    this.answered.add(done.id);
    this.list = rest;
    this.told.changed();
    // Loading more clips would take the time that the next one needs to begin.
    clearTimeout(this.soon);
    if (rest.length > 1) this.soon = setTimeout(() => this.refill(), AFTER_MS);
    else this.refill();
  }

  /** Ask this one again, before the others. */
  again(question) {
    this.answered.delete(question.id);
    this.list = [question, ...this.list.filter((one) => one.id !== question.id)];
    this.told.changed();
  }

  async giveBack(broken = "") {
    const [one] = this.list;
    if (!one) return;
    this.next();
    await post("/api/give_back", { question: one.id, broken }).catch(this.told.failed);
    this.release(one.id);
  }

  async beat() {
    if (!this.list.length || this.away) return;
    const untold = this.told.unsent(); // taken back, and not leased again before the service knows
    const ids = this.list.map((one) => one.id).filter((id) => !untold.includes(id));
    if (!ids.length) return;
    try {
      const { kept, lease_s } = await post("/api/beat", { questions: ids });
      this.keptUntil = performance.now() + 1000 * lease_s;
      const gone = new Set(ids.filter((id) => !kept.includes(id)));
      if (!gone.size) return;
      const shown = this.list[0]?.id;
      this.list = this.list.filter((one) => !gone.has(one.id));
      if (gone.has(shown)) this.told.lost();
      this.told.changed();
      this.refill();
    } catch (fault) {
      if (fault.bans) this.told.failed(fault); // the next one may go through; a lease outlives several
    }
  }

  /** None is held any more. */
  forget() {
    this.list = [];
    this.told.changed();
  }

  leave() {
    this.away = true;
  }

  async comeBack() {
    this.away = false;
    await this.beat();
    this.refill();
  }
}
