/** Requests to the server that the page came from, in OpenAI's shape, and what comes back. */

import { Events } from "./events.js";

/** What the server, or the way to it, refused; field, code and status where they are known. */
export class Refused extends Error {
  constructor({ message, param = null, code = null }, status = null) {
    super(message);
    Object.assign(this, { param, code, status });
  }
}

/** What went wrong, in words. */
export function errorText({ message, param }) {
  return param && !message.includes(param) ? `${param}: ${message}` : message;
}

/** The path of the request that a form's answers make. */
export function pathOf(asked) {
  return asked.chat ? "v1/chat/completions" : "v1/completions";
}

/** Its body, for one side. */
export function bodyOf(asked, guidance) {
  const words = asked.chat ? { messages: [{ role: "user", content: asked.prompt }] } : { prompt: asked.prompt };
  const seed = asked.seed === null ? {} : { seed: asked.seed };
  return {
    model: asked.model,
    ...words,
    max_tokens: asked.maxTokens,
    temperature: asked.temperature,
    ...seed,
    stream: true,
    stream_options: { include_usage: true },
    logprobs: true,
    top_logprobs: 5,
    guidance,
  };
}

/** The body that asks for a debate. */
export function debateOf({ model, question, answers, source, seed, numbers }) {
  return {
    model,
    messages: [{ role: "user", content: question }],
    debate: { answers, ...(source.trim() ? { source } : {}), ...numbers },
    ...(seed === null ? {} : { seed }),
    stream: true,
    stream_options: { include_usage: true },
  };
}

/** A line for a shell that sends this body; a key is read from the shell's own API_KEY. */
export function curlLine(url, body, withKey) {
  const quoted = (text) => `'${text.replaceAll("'", String.raw`'\''`)}'`;
  const key = withKey ? ' -H "Authorization: Bearer $API_KEY"' : "";
  return `curl -N ${quoted(url)} -H 'Content-Type: application/json'${key} -d ${quoted(JSON.stringify(body))}`;
}

/** What the server lists as models. Throws Refused. */
export async function models(key) {
  const response = await reach("v1/models", { headers: headers(key) });
  const listed = parsed(await response.text())?.data;
  if (!Array.isArray(listed)) throw new Refused({ message: "The server's list of models cannot be read." });
  return listed;
}

/** The chunks of a completion as they come. Throws Refused, and AbortError where `signal` ends it. */
export async function* stream(path, body, { key, signal }) {
  const json = { ...headers(key), "Content-Type": "application/json" };
  const response = await reach(path, { method: "POST", headers: json, body: JSON.stringify(body), signal });
  const reader = response.body.getReader();
  const events = new Events();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Refused({ message: "The stream broke off before its end." });
      for (const { data } of events.push(value)) {
        if (data === "[DONE]") return;
        yield chunkOf(data);
      }
    }
  } catch (error) {
    if (error instanceof TypeError) throw new Refused({ message: `The connection was lost: ${error.message}.` });
    throw error;
  } finally {
    reader.cancel().catch(() => {});
  }
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function reach(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error instanceof TypeError) throw new Refused({ message: `The server cannot be reached: ${error.message}.` });
    throw error;
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const text = await response.text();
  const told = parsed(text)?.error;
  const message = `${response.status} ${response.statusText}`.trim();
  return new Refused(typeof told?.message === "string" ? told : { message }, response.status);
}

function chunkOf(data) {
  const chunk = parsed(data);
  if (!chunk) throw new Refused({ message: "The server sent an event that is no JSON." });
  if (chunk.error) throw new Refused(chunk.error);
  return chunk;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
