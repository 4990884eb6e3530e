/** The API key: kept for the tab's life only, and asked for where the server wants one. */

const NAME = "trimtab-api-key";

export function key() {
  return sessionStorage.getItem(NAME);
}

export class KeyForm {
  /** `used`: called once a key has been given. */
  constructor(form, used) {
    this.form = form;
    this.input = form.querySelector("input");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem(NAME, this.input.value);
      this.input.value = "";
      form.hidden = true;
      used();
    });
  }

  ask() {
    this.form.hidden = false;
    this.input.focus();
  }
}
