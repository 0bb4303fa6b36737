// Puts the parts together: the key, the models, the tabs, and the light that tells of the service.

import { Bulk } from "./bulk.js";
import { Compare } from "./compare.js";
import { $, count, say } from "./dom.js";
import { Generate } from "./generate.js";
import { getJson, refusals } from "./http.js";
import { keep, key, takeFromAddress, wrongWith } from "./key.js";
import { notify, showProblem } from "./problems.js";
import { Pulse } from "./pulse.js";
import { Queue } from "./queue.js";
import { makeTabs } from "./tabs.js";

const REFUSED =
  "The service does not know this key: it may be of another service, mistyped, or revoked. slm up prints " +
  "an address with the right one; slm keys create makes another.";

const pulse = new Pulse();
const queue = new Queue(pulse);
const parts = [new Generate(pulse), new Compare(pulse), new Bulk(pulse), queue];
let models = null;
let loading = false;

async function load() {
  if (loading || !key()) return;
  loading = true;
  let refused = false;
  try {
    models = (await getJson("models")).data;
    $("service-notice").replaceChildren();
    if ($("key-dialog").open) $("key-dialog").close();
    for (const part of parts) part.offer(models);
  } catch (problem) {
    refused = problem.status === 401; // which asks for another key
    if (!refused) showProblem($("service-notice"), problem);
  }
  loading = false;
  if (!refused) pulse.ask();
}

pulse.addEventListener("change", () => {
  const { problem, queues } = pulse;
  const workers = Math.max(0, ...[...queues.values()].map((each) => each.workers));
  const text = problem ? "No answer" : workers ? count(workers, "worker") : "No worker";
  say($("pulse-text"), problem?.status === 401 ? "No key" : text);
  $("pulse").dataset.state = problem ? "bad" : workers ? "good" : "warn";
  const place = $("service-notice");
  if (problem && problem.status !== 401) {
    if (!place.hasChildNodes()) showProblem(place, problem);
  } else {
    place.replaceChildren();
    if (!models) load();
  }
});

// The key

const dialog = $("key-dialog");

function askForKey(title, detail) {
  if (title) notify($("key-notice"), title, detail);
  else $("key-notice").replaceChildren();
  complain("");
  if (!dialog.open) dialog.showModal();
  $("key-input").select();
}

function complain(wrong) {
  $("key-error").textContent = wrong;
  $("key-input").setAttribute("aria-invalid", wrong !== "");
}

async function useKey(event) {
  event.preventDefault();
  const given = $("key-input").value.trim();
  const wrong = wrongWith(given);
  complain(wrong);
  if (wrong) return $("key-input").focus();
  const before = key();
  keep(given);
  models = null;
  $("key-notice").replaceChildren();
  await load();
  if (models) $("key-input").value = "";
  else if ($("key-notice").hasChildNodes()) keep(before); // refused: the old one may still do
  else dialog.close(); // the page tells what else is wrong
}

refusals.addEventListener("refused", () => {
  say($("pulse-text"), "No key");
  $("pulse").dataset.state = "bad";
  askForKey("This key does not work", REFUSED);
});
$("key-form").addEventListener("submit", useKey);
$("key-close").addEventListener("click", () => dialog.close());
$("key-change").addEventListener("click", () => askForKey());
window.addEventListener("hashchange", () => {
  const wrong = takeFromAddress();
  if (wrong !== null) begin(wrong);
});

/** With the key that there is; asks for one where there is none, or a `wrong` one was given. */
async function begin(wrong) {
  if (key()) await load();
  else say($("pulse-text"), "No key");
  if (key() && !wrong) return;
  if (!dialog.open) askForKey();
  if (wrong) complain(wrong);
}

const wrong = takeFromAddress(); // before the tabs look at the address
makeTabs(document.querySelector("[role=tablist]"), (name) => queue.watch(name === "queue"));
begin(wrong);
