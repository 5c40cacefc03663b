
"use strict";
// The browser of texts. Every text is set with textContent: what a model wrote is never markup.
(() => {
  const PAGE = 10;
  const data = JSON.parse(document.getElementById("examples").textContent);
  const find = (id) => document.getElementById(id);
  const search = find("search"), show = find("show"), order = find("order"), cards = find("cards");
  let page = 0;

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  data.prompts.forEach((prompt, at) => {
    const texts = prompt.messages.map((turn) => turn[1]);
    prompt.policies.forEach((responses) => responses.forEach((one) => texts.push(one.text)));
    prompt.at = at;
    prompt.searched = texts.join("\n").toLowerCase();
    prompt.longest = Math.max(...prompt.policies.flat().map((one) => one.tokens));
  });

  const isBest = (prompt, judge, policy) => prompt.best[judge].length === 1 && prompt.best[judge][0] === policy;
  const choices = [["every prompt", () => true]];
  if (data.judges.length > 1) choices.push(["where judges disagree", (prompt) => prompt.disagree]);
  if (data.policies.length > 1) {
    for (const judge of data.judges) {
      data.policies.forEach((name, policy) => {
        choices.push([`${name} is best by ${judge.label}`, (prompt) => isBest(prompt, judge.key, policy)]);
      });
      choices.push([`a tie by ${judge.label}`, (prompt) => prompt.best[judge.key].length > 1]);
    }
  }
  choices.forEach(([label, keep], index) => {
    const count = data.prompts.filter(keep).length;
    const option = element("option", "", `${label} (${count})`);
    option.value = index;
    show.append(option);
  });

  const orders = {
    file: (a, b) => a.at - b.at,
    difference: (a, b) => b.difference - a.difference || a.at - b.at,
    longest: (a, b) => b.longest - a.longest || a.at - b.at,
  };

  const textBlock = (text) => {
    const block = element("p", text ? "text" : "text empty", text || "(empty)");
    block.dir = "auto";
    return block;
  };

  const marksOf = (prompt, policy) => {
    const marks = element("div", "marks");
    if (data.policies.length < 2) return marks;
    data.judges.forEach((judge, index) => {
      const best = prompt.best[judge.key];
      if (!best.includes(policy)) return;
      const tied = best.length > 1;
      const text = tied ? `tied by ${judge.label}` : `best by ${judge.label}`;
      marks.append(element("span", index > 0 || tied ? "mark other" : "mark", text));
    });
    return marks;
  };

  const answerOf = (prompt, responses, policy) => {
    const answer = element("div", "answer");
    answer.append(element("h4", "", data.policies[policy]), marksOf(prompt, policy));
    for (const one of responses) {
      const response = element("div", "response");
      const numbers = element("p", "numbers", [
        ...data.judges.map((judge, index) => `${judge.key === "reward_model" ? "score" : judge.label} ${one.scores[index]}`),
        `${one.tokens} token${one.tokens === 1 ? "" : "s"}`,
      ].join(" · "));
      if (!one.finished) numbers.append(" · ", element("span", "cut", "cut at the limit"));
      response.append(textBlock(one.text), numbers);
      answer.append(response);
    }
    return answer;
  };

  const cardOf = (prompt) => {
    const card = element("article", "card");
    const title = element("h3");
    title.append(element("span", "", `Prompt ${prompt.at + 1} of ${data.prompts.length}`), element("span", "n", prompt.id));
    if (prompt.disagree) title.append(element("span", "mark other", "judges disagree"));
    card.append(title);
    for (const [role, text] of prompt.messages) {
      const turn = element("div", "turn");
      turn.append(element("div", "role", role), textBlock(text));
      card.append(turn);
    }
    const answers = element("div", "answers");
    prompt.policies.forEach((responses, policy) => answers.append(answerOf(prompt, responses, policy)));
    card.append(answers);
    return card;
  };

  const draw = () => {
    const words = search.value.trim().toLowerCase();
    const keep = choices[Number(show.value)][1];
    const found = data.prompts.filter((prompt) => keep(prompt) && prompt.searched.includes(words));
    found.sort(orders[order.value]);
    page = Math.max(0, Math.min(page, Math.ceil(found.length / PAGE) - 1));
    const start = page * PAGE, end = Math.min(start + PAGE, found.length);
    cards.replaceChildren(...found.slice(start, end).map(cardOf));
    const status = found.length ? `${start + 1} to ${end} of ${found.length}` : "No prompt matches";
    document.querySelectorAll(".status").forEach((place) => { place.textContent = status; });
    document.querySelectorAll(".previous").forEach((button) => { button.disabled = page === 0; });
    document.querySelectorAll(".next").forEach((button) => { button.disabled = end >= found.length; });
  };

  const turn = (by, toTop) => {
    page += by;
    draw();
    if (toTop) find("texts").scrollIntoView();
  };
  const restart = () => { page = 0; draw(); };
  search.addEventListener("input", restart);
  show.addEventListener("change", restart);
  order.addEventListener("change", restart);
  document.querySelectorAll(".pager").forEach((pager, index) => {
    pager.querySelector(".previous").addEventListener("click", () => turn(-1, index > 0));
    pager.querySelector(".next").addEventListener("click", () => turn(1, index > 0));
    pager.hidden = false;
  });
  find("filters").hidden = false;
  show.value = "0";
  draw();
})();
