/** Server-sent events (WHATWG HTML, section 9.2) out of bytes that are cut anywhere. */

export class Events {
  #decoder = new TextDecoder();
  #rest = "";
  #wasReturn = false;
  #event = "";
  #data = [];

  /** The events that are whole once these bytes have come, each {event, data}. */
  push(bytes) {
    this.#take(this.#decoder.decode(bytes, { stream: true }));
    const found = [];
    for (const line of this.#lines()) {
      if (line === "") this.#dispatch(found);
      else this.#field(line);
    }
    return found;
  }

  /** A carriage return ends its line at once, so a line feed that comes after it in the next bytes ends none. */
  #take(text) {
    if (!text) return;
    this.#rest += this.#wasReturn && text[0] === "\n" ? text.slice(1) : text;
    this.#wasReturn = text.endsWith("\r");
  }

  #lines() {
    const lines = this.#rest.split(/\r\n|\n|\r/);
    this.#rest = lines.pop();
    return lines;
  }

  #dispatch(found) {
    if (this.#data.length) found.push({ event: this.#event || "message", data: this.#data.join("\n") });
    this.#event = "";
    this.#data = [];
  }

  #field(line) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "event") this.#event = value;
    if (name === "data") this.#data.push(value);
  }
}
