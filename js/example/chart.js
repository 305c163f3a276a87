const [WIDTH, HEIGHT] = [600, 200];

/** Loss and accuracy of all steps as two lines, and in words. */
export class Chart {
  #losses = [];
  #accuracies = [];
  #lines;
  #words;

  /**
   * @param {SVGElement} picture
   * @param {HTMLElement} words
   */
  constructor(picture, words) {
    this.#words = words;
    this.#lines = ["loss", "accuracy"].map((name) => {
      const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
      line.setAttribute("class", name);
      picture.append(line);
      return line;
    });
  }

  add(loss, accuracy) {
    this.#losses.push(loss);
    this.#accuracies.push(accuracy);
  }

  /** Draw what has been added; call it when the picture is to change, not for each step. */
  show() {
    const highest = Math.max(...this.#losses);
    [this.#losses.map((loss) => loss / highest), this.#accuracies].forEach((values, i) => {
      const across = WIDTH / Math.max(values.length - 1, 1);
      const points = values.map((value, step) => `${(step * across).toFixed(1)},${(HEIGHT * (1 - value)).toFixed(1)}`);
      this.#lines[i].setAttribute("points", points.join(" "));
    });
    const recent = (values) => values.slice(-20).reduce((sum, value, _, { length }) => sum + value / length, 0);
    const accuracy = (100 * recent(this.#accuracies)).toFixed(0);
    this.#words.textContent =
      `After ${this.#losses.length} steps, over the latest 20: loss ${recent(this.#losses).toFixed(3)}, ` +
      `accuracy ${accuracy} %. The loss is drawn from 0 to ${highest.toFixed(1)}.`;
  }
}
