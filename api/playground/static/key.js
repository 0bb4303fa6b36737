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

/**
 * Takes the key out of `#key=…`, so that nobody reads it from the screen, and keeps it if it can be
 * one. Returns what is wrong with it (empty: nothing), or null where none is there.
 */
export function takeFromAddress() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given === null) return null;
  history.replaceState(null, "", location.pathname + location.search);
  const wrong = wrongWith(given);
  if (!wrong) keep(given);
  return wrong;
}

/** What is wrong with a key at first sight: a header carries printable ASCII only. */
export function wrongWith(given) {
  if (!given) return "Paste a key.";
  return /^[\x21-\x7e]+$/.test(given) ? "" : "A key has no spaces or odd characters.";
}
