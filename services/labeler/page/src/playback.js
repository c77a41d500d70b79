// Several clips played as one: in step, in a loop, slower, or picture by picture.

import { useLayoutEffect, useRef, useState } from "preact/hooks";

const APART_S = 0.08; // from which on a clip is set right
export const RATES = [0.25, 0.5, 1, 2];

/** videos: a ref to a list of elements; shown: whether it is their turn; loop: from the beginning again. */
export function usePlayback({ videos, shown, fps, loop = true, onFirstPlay }) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const [playing, setPlaying] = useState(!calm);
  const [rate, setRate] = useState(1);
  const wants = useRef({});
  wants.current = { playing, rate, loop };

  const all = () => videos.current.filter(Boolean);
  const start = () => {
    if (!all().every((video) => video.readyState >= 2)) return;
    all().forEach((video) => {
      video.playbackRate = wants.current.rate;
      if (!video.ended) video.play().catch(() => {}); // swapped for the next before it began
    });
  };
  /** All stop at the same picture, shorter clips at their last. */
  const halt = () => {
    for (const video of all()) video.pause();
    const at = Math.max(...all().map((video) => video.currentTime));
    for (const video of all()) if (!video.ended && video.currentTime < at) video.currentTime = Math.min(at, video.duration || 0);
  };
  const restart = () => {
    all().forEach((video) => (video.currentTime = 0));
    setPlaying(true);
    start();
  };

  // Before the page is painted: the first picture comes the sooner.
  useLayoutEffect(() => {
    if (!shown) return;
    const began = () => onFirstPlay?.();
    const ended = () => {
      if (!all().every((video) => video.ended)) return;
      if (wants.current.loop && wants.current.playing) {
        all().forEach((video) => (video.currentTime = 0));
        start();
      } else setPlaying(false);
    };
    const ready = () => wants.current.playing && start();
    const inStep = () => {
      const [first, ...others] = all();
      if (!first || first.paused || first.ended) return;
      for (const video of others) {
        const at = Math.min(first.currentTime, video.duration || 0);
        if (!video.ended && Math.abs(video.currentTime - at) > APART_S) video.currentTime = at;
      }
    };
    const heard = [["playing", began], ["ended", ended], ["canplay", ready], ["timeupdate", inStep]];
    const mine = all();
    mine.forEach((video) => heard.forEach(([name, what]) => video.addEventListener(name, what)));
    return () => {
      mine.forEach((video) => heard.forEach(([name, what]) => video.removeEventListener(name, what)));
      mine.forEach((video) => video.pause());
    };
  }, [shown]);

  useLayoutEffect(() => {
    if (!shown) return;
    if (playing) start();
    else halt();
  }, [shown, playing, rate]);

  return {
    playing,
    rate,
    setRate,
    restart,
    toggle: () => {
      if (!playing && all().every((video) => video.ended)) restart();
      else setPlaying(!playing);
    },
    step: (pictures) => {
      setPlaying(false);
      wants.current.playing = false; // at once: what is drawn next is the picture that was asked for
      const now = Math.max(...all().map((video) => Math.floor(video.currentTime * fps + 0.001)));
      all().forEach((video) => {
        video.pause();
        const last = Math.max(0, Math.round((video.duration || 0) * fps) - 1);
        video.currentTime = (Math.max(0, Math.min(last, now + pictures)) + 0.5) / fps; // the middle of a picture
      });
    },
    faster: (by) => setRate(RATES[Math.max(0, Math.min(RATES.length - 1, RATES.indexOf(rate) + by))]),
  };
}

/** The number of the picture that is on the screen; the browser says which it drew last. */
export function pictureOf(video, fps, frames) {
  const at = drawn.get(video) ?? video.currentTime;
  return Math.max(0, Math.min(frames - 1, Math.floor(at * fps + 0.01)));
}

const drawn = new WeakMap(); // video -> time of the picture that was drawn last

/** Take note of the pictures that a video draws, for `pictureOf`; returns what ends that. */
export function watchPictures(video) {
  if (!video.requestVideoFrameCallback) return () => {};
  let handle = 0;
  const noted = (_, { mediaTime }) => {
    drawn.set(video, mediaTime);
    handle = video.requestVideoFrameCallback(noted);
  };
  handle = video.requestVideoFrameCallback(noted);
  return () => video.cancelVideoFrameCallback(handle);
}
