/** A mistake that the caller can mend; the codes are those of docs/errors.md. */
export class FqtError extends Error {
  /**
   * @param {string} message what is wrong, with the numbers
   * @param {string} code such as "FQT505"
   * @param {string} [hint] what to do
   */
  constructor(message, code, hint) {
    super(hint === undefined ? message : `${message}; ${hint}`);
    this.name = "FqtError";
    this.code = code;
    this.hint = hint;
  }
}
