// Room 5, recall: first the reader's own guess, and only then what was measured.

import { button, h, noStudy, number, percent, picture, unique } from "./kit.js";

export const id = "recall";
export const title = "Recall";

const [HOLDS, FAILS, UNDECIDED] = ["holds", "does not hold here", "undecided"];
const BADGES = {
  [HOLDS]: ["holds", "Holds"],
  [FAILS]: ["fails", "Does not hold here"],
  [UNDECIDED]: ["open", "Undecided"],
};
const LEFT_OPEN = "The measurement will not tell: it varies too much from seed to seed.";

// The questions with guesses of their own. A guess is right if the verdicts of the claims are those beside it, in the
// order of the claims; null stands for any verdict. So what was measured decides, and not the one who wrote the page.
const QUESTIONS = [
  {
    claims: ["saturate"],
    question:
      "A network's first layer gets raw pixels, 0 to 255, and its units are sigmoids. What do its weights learn " +
      "from, beside the same layer with z-scored pixels?",
    guesses: [
      ["From very little: most sigmoids sit where they are flat, and hardly any gradient comes back.", [HOLDS]],
      [
        "From more than one would think: most are flat, but the few that are not send a gradient back, and large " +
          "pixels make it larger.",
        [FAILS],
      ],
    ],
  },
  {
    claims: ["shift"],
    question:
      "“Internal covariate shift”: while the early layers of a deep network learn, the inputs of the later ones " +
      "move. Is it worse the deeper the layer, and does a norm inside cure it?",
    guesses: [
      ["Yes to both: deep layers drift most, and with the norm they do not.", [HOLDS]],
      ["No: at least one of the two is not so when it is measured.", [FAILS]],
    ],
  },
  {
    claims: ["undo", "learn"],
    question:
      "Batch norm gives every channel mean 0 and variance 1, and then gamma and beta may give it any other. Why " +
      "give back what was just taken away?",
    guesses: [
      [
        "The layer must be able to do nothing at all, or anything between, and trained networks use that freedom.",
        [HOLDS, HOLDS],
      ],
      ["They could undo it, but in trained networks gamma stays about 1 and beta about 0.", [HOLDS, FAILS]],
      ["They cannot undo it exactly, whatever their values.", [FAILS, null]],
    ],
  },
  {
    claims: ["modes", "running"],
    question: "At test time, which mean and variance does batch norm use, and why not those of the samples at hand?",
    guesses: [
      [
        "Running averages from training. They come close to the population's, and the answer depends on the " +
          "sample alone.",
        [HOLDS, HOLDS],
      ],
      ["Running averages, although they are still far from the population's when training ends.", [HOLDS, FAILS]],
      ["Running averages, but those of the samples at hand would do as well.", [FAILS, null]],
    ],
  },
  {
    claims: ["channels"],
    question:
      "In a convolutional network batch norm has one mean for each channel, pooled over the batch and all " +
      "places. Why not one for each pixel?",
    guesses: [
      [
        "A filter does the same thing at every place, and so many more values make a steadier mean. Per pixel " +
          "does worse.",
        [HOLDS],
      ],
      ["Per pixel does as well or better, for it knows more.", [FAILS]],
    ],
  },
  {
    claims: ["small"],
    question:
      "Your images are so large that a batch holds only one, two or four of them. When would you take group norm?",
    guesses: [
      ["Here: batch norm's error grows as the batch shrinks, and group norm's does not.", [HOLDS]],
      ["Not for that reason: batch norm's error does not grow like that, or group norm's grows too.", [FAILS]],
    ],
  },
];
const GENERAL = [
  ["It holds.", [HOLDS]],
  ["It does not hold, at least not on these data.", [FAILS]],
];

// Return how a guess turned out: "right", "wrong", "open" if the data do not decide, "none" if there was no guess.
export function judge(expected, verdicts) {
  if (expected === null) return "none";
  if (expected === "open") return verdicts.includes(UNDECIDED) ? "right" : "wrong";
  const wanted = expected.map((verdict, at) => [verdict, verdicts[at]]).filter(([verdict]) => verdict !== null);
  if (wanted.every(([verdict, found]) => verdict === found)) return "right";
  return wanted.some(([verdict, found]) => verdict !== found && found !== UNDECIDED) ? "wrong" : "open";
}

// Return the questions that a study can answer: those above, and one for each other claim.
export function questions(claims) {
  const known = new Map(claims.map((claim) => [claim.id, claim]));
  const own = QUESTIONS.filter((one) => one.claims.every((id) => known.has(id)));
  const asked = new Set(own.flatMap((one) => one.claims));
  const others = claims
    .filter((claim) => !asked.has(claim.id))
    .map((claim) => ({ claims: [claim.id], question: claim.question, statement: claim.claim, guesses: GENERAL }));
  return [...own, ...others].map((one) => ({ ...one, records: one.claims.map((id) => known.get(id)) }));
}

// ---------------------------------------------------------------- the room

export function mount(root, study) {
  root.append(
    h("h1", {}, "Recall: guess first, then see what was measured"),
    h(
      "p",
      { class: "lead" },
      "A guess that is made before the answer is what makes it stick. Where the measurement disagrees with the " +
        "textbook, the measurement is what you see.",
    ),
  );
  if (!study.claims?.claims.length) {
    root.append(noStudy());
    return {};
  }
  const stop = quiz(root, questions(study.claims.claims));
  const { data, seeds } = study.claims;
  root.append(h("p", { class: "source" }, `Measured on ${data.name}, ${seeds.length} seeds.`));
  return { unmount: stop };
}

// One question at a time, their numbers to choose from, and the tally.
function quiz(root, asked) {
  const stops = [];
  const shown = h("p", { class: "status", "aria-live": "polite" });
  const outcomes = new Array(asked.length).fill(null);
  const name = (at) => `Question ${at + 1}${outcomes[at] ? `: ${OUTCOMES[outcomes[at]]}` : ""}`;
  const open = (wanted) => {
    cards.forEach((card, at) => (card.hidden = at !== wanted));
    steps.forEach((step, at) => step.setAttribute("aria-current", at === wanted ? "step" : "false"));
  };
  const steps = asked.map((_, at) => button(at + 1, () => open(at), { class: "step", "aria-label": name(at) }));
  const done = (at, how) => {
    outcomes[at] = how;
    steps[at].dataset.how = how;
    steps[at].setAttribute("aria-label", name(at));
    shown.textContent = tallied(outcomes);
  };
  const next = (at) => {
    const following = (at + 1) % asked.length;
    open(following);
    cards[following].querySelector("input:enabled, .answer").focus({ preventScroll: true });
    shown.scrollIntoView();
  };
  const cards = asked.map((question, at) => questionCard(question, at, { done, next }, stops));
  shown.textContent = tallied(outcomes);
  root.append(h("nav", { class: "row steps", "aria-label": "Questions" }, steps), shown, ...cards);
  open(0);
  return () => stops.forEach((stop) => stop());
}

function tallied(outcomes) {
  const [right, wrong, open, none] = ["right", "wrong", "open", "none"].map(
    (how) => outcomes.filter((one) => one === how).length,
  );
  const done = right + wrong + open + none;
  if (done === 0) return `${outcomes.length} questions, and none answered yet.`;
  const parts = [`${right} of ${right + wrong} guesses as measured`];
  if (open) parts.push(`${open} ${open === 1 ? "is" : "are"} left open by the data`);
  if (none) parts.push(`${none} without a guess`);
  return `${parts.join("; ")}. ${outcomes.length - done} to go.`;
}

function questionCard({ question, statement, guesses, records }, at, { done, next }, stops) {
  const name = unique("guess");
  // What the textbook says must not always come first.
  const turned = [...guesses.slice(at % guesses.length), ...guesses.slice(0, at % guesses.length)];
  const all = [...turned, [LEFT_OPEN, "open"], ["I do not know yet.", null]];
  const inputs = all.map((_, nth) => h("input", { type: "radio", name, value: nth }));
  const show = button("Show what was measured", () => reveal(), { class: "main", disabled: true });
  const form = h(
    "fieldset",
    { class: "guesses", onchange: () => (show.disabled = false) },
    h("legend", {}, `${at + 1}. ${question}`),
    statement ? h("p", {}, "The claim: ", h("em", {}, statement)) : null,
    all.map(([text], nth) => h("label", {}, inputs[nth], h("span", {}, text))),
  );
  const onward = button("Next question", () => next(at));
  const buttons = h("div", { class: "row" }, show, onward);
  const reveal = () => {
    const how = judge(
      all[inputs.findIndex((input) => input.checked)][1],
      records.map(({ verdict }) => verdict),
    );
    const answer = h("div", { class: "answer", tabindex: "-1" }, h("p", { class: "found" }, WORDS[how]));
    form.disabled = true;
    show.remove();
    buttons.before(answer);
    done(at, how);
    for (const record of records) answer.append(measured(record, stops));
    answer.focus({ preventScroll: true });
  };
  return h("section", { class: "card", "aria-label": `Question ${at + 1}` }, form, buttons);
}

const OUTCOMES = { right: "as measured", wrong: "measured otherwise", open: "left open", none: "no guess" };
const WORDS = {
  right: "That is what was measured.",
  wrong: "It was measured otherwise.",
  open: "The data leave it open, so your guess is neither right nor wrong.",
  none: "No guess, so here is the answer.",
};

// What was found of one claim.
function measured(record, stops) {
  const [kind, word] = BADGES[record.verdict] ?? BADGES[UNDECIDED];
  const pictures = h("div", { class: "columns" });
  for (const one of record.pictures) {
    const place = h("div");
    pictures.append(place);
    const { stop } = picture(place, one);
    if (stop) stops.push(stop);
  }
  return h(
    "article",
    {},
    h("h2", {}, record.claim, " ", h("span", { class: `badge ${kind}` }, word)),
    h("p", {}, record.measured),
    pictures,
    h("p", {}, record.explanation),
    h(
      "details",
      {},
      h("summary", {}, "What decided it, and the Python that does it"),
      h(
        "ul",
        {},
        record.tests.map((test) => h("li", {}, testSentence(test))),
        record.numbers.map((one) => h("li", {}, `${one.what}: ${interval(one)}`)),
      ),
      h("pre", { tabindex: "0" }, h("code", {}, record.example)),
    ),
    h("p", { class: "source" }, `Source: ${record.source}`),
  );
}

export function testSentence({ what, value, bound, unit, below }) {
  return `${what}: ${interval({ value, unit })}; it must ${below ? "stay below" : "exceed"} ${amount(bound, unit)}`;
}

function interval({ value: { mean, low, high }, unit }) {
  const alone = low === null || high === null || low === high;
  return amount(mean, unit) + (alone ? "" : ` (95% interval ${amount(low, unit)} to ${amount(high, unit)})`);
}

function amount(value, unit) {
  if (unit === "%") return percent(value);
  return unit ? `${number(value)} ${unit === "x" ? "times" : unit}` : number(value);
}
