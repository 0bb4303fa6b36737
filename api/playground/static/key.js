// The API key: from the part of the address that no server gets to see, or from its owner. This tab
// keeps it until it is closed.

const NAME = "slm-key";
let held = "";

export function key() {
  try {
    return sessionStorage.getItem(NAME) ?? held;
  } catch {
    return held; // storage is switched off
  }
}

export function keep(given) {
  held = given;
  try {
    sessionStorage.setItem(NAME, given);
  } catch {
    // then it lives until the page is left
  }
}

/** Takes the key out of `#key=…`, where it is there, so that nobody reads it from the screen. */
export function takeFromAddress() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given === null) return false;
  history.replaceState(null, "", location.pathname + location.search);
  if (given) keep(given);
  return given !== "";
}

/** A header carries printable ASCII only; nothing else is a key. */
export const isPossible = (given) => /^[\x21-\x7e]+$/.test(given);
