/* Reads lines "bundle FOLDER" and "checkpoint FILE" from standard input and answers each with the code of what became of
 * it: 0 where it was taken and used. The folder of a good artifact is the argument. */
#include <fqt_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LARGEST (1u << 26) /* bytes of a batch; what is larger, nobody has */

#define MOST 16 /* inputs of a model; it has two */

/* A prediction and a step on zeros, by position where there are one input and one target, and by name. */
static int use(fqt_session *session) {
  fqt_array arrays[MOST];
  void *values[MOST];
  const fqt_tensor *input, *x = fqt_x(session), *y = fqt_y(session);
  const size_t bytes = fqt_logits(session)->bytes, taken = fqt_model_inputs(session);
  size_t count = 0, i;
  float loss;
  int code = 0;
  for (; (input = fqt_input(session, count)) != NULL; ++count)
    if (count == MOST || input->bytes > LARGEST) return 0;
  if (bytes > LARGEST) return 0;
  for (i = 0; i < count; ++i) {
    input = fqt_input(session, i);
    values[i] = calloc(1, input->bytes + 1);
    arrays[i] = (fqt_array){input->name, values[i], input->shape, input->ndim};
  }
  void *logits = malloc(bytes + 1);
  if (taken == 1 && count == 2) {
    code = fqt_predict(session, values[0], x->bytes, logits, bytes);
    if (code == 0) code = fqt_step(session, values[0], x->bytes, values[1], y->bytes, &loss);
  }
  if (code == 0) code = fqt_predict_arrays(session, arrays, taken, logits, bytes);
  if (code == 0) code = fqt_train(session, arrays, count, &loss);
  for (i = 0; i < count; ++i) free(values[i]);
  free(logits);
  return code;
}

int main(int argc, char **argv) {
  static char line[8192];
  fqt_session *session;
  if (argc != 2 || fqt_load(argv[1], &session) != 0) {
    fprintf(stderr, "%s\n", fqt_last_error());
    return 1;
  }
  while (fgets(line, sizeof line, stdin) != NULL) {
    char *path = strchr(line, ' ');
    int code;
    line[strcspn(line, "\n")] = '\0';
    if (path == NULL) return 2;
    ++path;
    if (strncmp(line, "bundle ", 7) == 0) {
      fqt_session *other;
      code = fqt_load(path, &other);
      if (code == 0) {
        code = use(other);
        fqt_free(other);
      }
    } else {
      code = fqt_load_checkpoint(session, path);
      if (code == 0) code = use(session);
    }
    printf("%d\n", code);
    fflush(stdout);
  }
  fqt_free(session);
  return 0;
}
