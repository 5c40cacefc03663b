// <lead-masthead api="/api">: the title of the lead's page, who is logged in, and the ways out of it.

import { make } from "./dom.js";
import { Server } from "./server.js";

class LeadMasthead extends HTMLElement {
  async connectedCallback() {
    if (this.firstChild) return;
    const server = new Server(this.getAttribute("api") ?? "/api");
    const name = make("bdi", { class: "name" });
    const leave = () => server.leave().catch(() => location.reload());
    this.append(
      make("h1", {}, "Lead’s page"),
      make("nav", { "aria-label": "Account" }, name, make("a", { href: "/rank" }, "Rank tasks"), make("button", { type: "button", onclick: leave }, "Log out")),
    );
    try {
      name.textContent = (await server.me()).name;
    } catch {
      name.textContent = ""; // whoever has no session will hear so from what they do next
    }
  }
}

customElements.define("lead-masthead", LeadMasthead);
