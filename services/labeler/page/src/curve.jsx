// A learning curve with its interval, over the steps or the labels that it took.

import { useState } from "preact/hooks";

const WIDTH = 560;
const HEIGHT = 240;
const EDGE = { left: 64, right: 16, top: 12, bottom: 40 };

export function Curve({ points }) {
  const [byLabels, setByLabels] = useState(false);
  const labelled = points.length > 1 && points.every((point) => point.labels != null);
  if (points.length < 2) return <p class="none">No curve yet: it begins with the run's second validation.</p>;
  const along = byLabels && labelled ? "labels" : "env_steps";
  const steps = points.map((point) => point[along]);
  const lows = points.map((point) => point.low ?? point.return_mean);
  const highs = points.map((point) => point.high ?? point.return_mean);
  const x = scale(Math.min(...steps), Math.max(...steps), EDGE.left, WIDTH - EDGE.right);
  const y = scale(Math.min(...lows), Math.max(...highs), HEIGHT - EDGE.bottom, EDGE.top);
  const path = (values) => values.map((value, n) => `${x.of(steps[n])},${y.of(value)}`);
  const band = [...path(highs), ...path(lows).reverse()].join(" ");
  const line = path(points.map((point) => point.return_mean)).join(" ");
  const last = points.at(-1);
  const words =
    `Return ${short(last.return_mean)} after ${short(last.env_steps)} steps` +
    (last.labels ? ` and ${short(last.labels)} labels` : "");
  return (
    <figure class="curve">
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={words}>
        {y.ticks.map((tick) => (
          <g key={tick}>
            <line class="grid" x1={EDGE.left} x2={WIDTH - EDGE.right} y1={y.of(tick)} y2={y.of(tick)} />
            <text x={EDGE.left - 8} y={y.of(tick) + 4} text-anchor="end">
              {short(tick)}
            </text>
          </g>
        ))}
        {x.ticks.map((tick) => (
          <text key={tick} x={x.of(tick)} y={HEIGHT - EDGE.bottom + 18} text-anchor="middle">
            {short(tick)}
          </text>
        ))}
        <polygon class="band" points={band} />
        <polyline class="mean" points={line} />
        <text x={(EDGE.left + WIDTH - EDGE.right) / 2} y={HEIGHT - 4} text-anchor="middle">
          {along === "labels" ? "labels" : "environment steps"}
        </text>
        <text transform={`rotate(-90) translate(${-(HEIGHT - EDGE.bottom) / 2} 14)`} text-anchor="middle">
          return
        </text>
      </svg>
      <figcaption>
        {words}.{" "}
        {labelled && (
          <button type="button" aria-pressed={byLabels} onClick={() => setByLabels(!byLabels)}>
            against labels
          </button>
        )}
      </figcaption>
    </figure>
  );
}

/** From values to pixels, and about four round values between. */
function scale(low, high, from, to) {
  const reach = high - low || Math.abs(high) || 1;
  const rough = reach / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step / 1e6; tick += step) ticks.push(tick);
  return { of: (value) => from + ((value - low) / reach) * (to - from), ticks };
}

function short(number) {
  const size = Math.abs(number);
  if (size >= 1e6) return `${Number((number / 1e6).toFixed(1))}M`;
  if (size >= 1e4) return `${Number((number / 1e3).toFixed(1))}k`;
  return `${Number(number.toFixed(size < 10 ? 2 : 0))}`;
}
