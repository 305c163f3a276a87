const RADIUS = 0.9; // of the brush, in cells

/**
 * A grid of cells to draw on, with mouse, finger, pen and keyboard. The values of its cells go from 0 to 1.
 *
 * It tells of each change in an event of type "drawn".
 */
export class Drawing extends EventTarget {
  #canvas;
  #place;
  #cells;
  #cursor = null;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {HTMLElement} place where it says which cell the keyboard is at
   * @param {{ rows: number, columns: number }} size
   */
  constructor(canvas, place, { rows, columns }) {
    super();
    this.#canvas = canvas;
    this.#place = place;
    [this.rows, this.columns] = [rows, columns];
    this.#cells = new Float32Array(rows * columns);
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.#stroke(event);
    });
    canvas.addEventListener("pointermove", (event) => event.buttons & 1 && this.#stroke(event));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => {
      this.#cursor = null;
      this.#show();
    });
    this.#show();
  }

  /** A copy of the cells, row by row. */
  get cells() {
    return this.#cells.slice();
  }

  get isEmpty() {
    return this.#cells.every((value) => value === 0);
  }

  clear() {
    this.#cells.fill(0);
    this.#changed();
  }

  #stroke(event) {
    const box = this.#canvas.getBoundingClientRect();
    const column = ((event.clientX - box.left) / box.width) * this.columns - 0.5;
    const row = ((event.clientY - box.top) / box.height) * this.rows - 0.5;
    this.#cells.forEach((value, i) => {
      const distance = Math.hypot(column - (i % this.columns), row - Math.floor(i / this.columns));
      this.#cells[i] = Math.max(value, Math.min(1, 1.5 - distance / RADIUS));
    });
    this.#changed();
  }

  #key(event) {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    this.#cursor ??= [0, 0];
    const [row, column] = this.#cursor;
    if (event.key in moves) {
      const [down, right] = moves[event.key];
      this.#cursor = [Math.min(Math.max(row + down, 0), this.rows - 1), Math.min(Math.max(column + right, 0), this.columns - 1)];
      this.#show();
    } else if (event.key === " ") {
      const place = row * this.columns + column;
      this.#cells[place] = this.#cells[place] > 0 ? 0 : 1;
      this.#changed();
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.clear();
    } else {
      return;
    }
    event.preventDefault();
  }

  #changed() {
    this.#show();
    this.dispatchEvent(new Event("drawn"));
  }

  #show() {
    const context = this.#canvas.getContext("2d");
    const [width, height] = [this.#canvas.width / this.columns, this.#canvas.height / this.rows];
    this.#cells.forEach((value, i) => {
      const shade = Math.round(255 * (1 - value));
      context.fillStyle = `rgb(${shade} ${shade} ${shade})`;
      context.fillRect((i % this.columns) * width, Math.floor(i / this.columns) * height, width, height);
    });
    this.#place.textContent = "";
    if (this.#cursor === null) return;
    const [row, column] = this.#cursor;
    context.strokeStyle = "#1f6fb3";
    context.lineWidth = 4;
    context.strokeRect(column * width + 2, row * height + 2, width - 4, height - 4);
    const state = this.#cells[row * this.columns + column] > 0 ? "painted" : "empty";
    this.#place.textContent = `Row ${row + 1}, column ${column + 1}: ${state}`;
  }
}
