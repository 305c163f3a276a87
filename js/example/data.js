/** The digits that the page comes with: images as the network takes them, and labels; the last ones are held out. */
export async function loadDigits() {
  const fetched = async (name) => (await fetch(`data/${name}`)).arrayBuffer();
  const [about, images, labels] = [await fetched("about.json"), await fetched("images.bin"), await fetched("labels.bin")];
  const { train, mean, deviation } = JSON.parse(new TextDecoder().decode(about));
  const [x, y] = [new Float32Array(images), new BigInt64Array(labels)];
  const size = x.length / y.length;
  return {
    train: { x: x.subarray(0, train * size), y: y.subarray(0, train) },
    heldOut: { x: x.subarray(train * size), y: y.subarray(train) },
    /** Cells from 0 to 1 as the network takes them: pixels of the digits go from 0 to 16. */
    normalized: (cells) => cells.map((value) => (16 * value - mean) / deviation),
  };
}

/**
 * The digits with the drawings, each drawing often enough to count.
 *
 * @param {{ x: Float32Array, y: BigInt64Array }} digits
 * @param {{ x: Float32Array, label: number }[]} drawings
 */
export function withDrawings(digits, drawings) {
  const times = 20;
  const size = digits.x.length / digits.y.length;
  const count = digits.y.length + drawings.length * times;
  const [x, y] = [new Float32Array(count * size), new BigInt64Array(count)];
  x.set(digits.x);
  y.set(digits.y);
  drawings.forEach((drawing, i) => {
    for (let time = 0; time < times; time++) {
      const row = digits.y.length + i * times + time;
      x.set(drawing.x, row * size);
      y[row] = BigInt(drawing.label);
    }
  });
  return [x, y];
}
