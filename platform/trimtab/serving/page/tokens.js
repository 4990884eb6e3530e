/** What the guide changed: tokens with what was said of them, and how they are coloured. Log-probs are natural. */

/** Nats from which on a colour is at its fullest; below the least of them there is none. */
export const FULL = 3;
const LEAST = 0.1;
/** Log-probs below this stand for a probability of zero, which JSON has no logarithm for. */
const NEVER = -1000;

/** The tokens of a chunk's choice, each {token, logprob, top_logprobs, trace}, the last null where there is none. */
export function tokensOf(choice) {
  const content = choice.logprobs?.content ?? [];
  return content.map((token, i) => ({ ...token, trace: choice.trace?.[i] ?? null }));
}

/** The pieces of text to show: one a token, or one of many where tokens share a character, as the bytes of one may. */
export function piecesOf(text, tokens) {
  if (tokens.map((one) => one.token).join("") !== text) return [{ text, tokens }];
  return tokens.filter((one) => one.token !== "").map((one) => ({ text: one.token, tokens: [one] }));
}

/** Fused log-prob less the base's, in nats: how far the guide pushed a piece; null where the base said nothing. */
export function push(piece, base) {
  if (!piece.tokens.length) return null;
  const pushes = piece.tokens.map(({ logprob, trace }) => {
    const said = trace?.said?.[base];
    return typeof said === "number" ? Math.max(logprob, NEVER) - Math.max(said, NEVER) : null;
  });
  return pushes.includes(null) ? null : pushes.reduce((sum, one) => sum + one, 0);
}

/** How a push looks: which way it goes, and how strongly, from 0 to 1. */
export function shade(nats) {
  if (nats === null) return { way: "unknown", strength: 0 };
  const strength = Math.min(1, Math.abs(nats) / FULL);
  if (Math.abs(nats) < LEAST) return { way: "as-is", strength: 0 };
  return { way: nats > 0 ? "up" : "down", strength };
}

/** Who wrote a piece, where that was one model by itself; else null. */
export function writer(piece) {
  const sources = new Set(piece.tokens.map((one) => one.trace?.source));
  const [source] = sources;
  return sources.size === 1 && source && source !== "fused" ? source : null;
}

/** A number of nats, with its sign. */
export function signed(nats) {
  if (Math.abs(nats) > -NEVER / 2) return nats > 0 ? "+∞" : "−∞";
  return (nats < 0 ? "−" : "+") + Math.abs(nats).toFixed(2);
}

/** A log-prob in nats. */
export function logprobText(logprob) {
  return logprob <= NEVER ? "−∞" : logprob.toFixed(2).replace("-", "−");
}

/** A log-prob as a share. */
export function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  if (share > 0 && share < 0.1) return "< 0.1 %";
  return `${share.toFixed(share < 10 ? 1 : 0)} %`;
}

/** A token's text with its spaces and line ends made visible. */
export function visible(text) {
  const shown = text.replaceAll("\r", "␍").replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");
  return shown || "(nothing)";
}
