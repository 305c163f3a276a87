/* Reads lines "bundle FOLDER" and "checkpoint FILE" from standard input and answers each with the code of what became of
 * it: 0 where it was taken and used. The folder of a good artifact is the argument. */
#include <fqt_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LARGEST (1u << 26) /* bytes of a batch; what is larger, nobody has */

static int use(fqt_session *session) {
  const size_t x_bytes = fqt_x(session)->bytes, y_bytes = fqt_y(session)->bytes, bytes = fqt_logits(session)->bytes;
  if (x_bytes > LARGEST || y_bytes > LARGEST || bytes > LARGEST) return 0;
  void *x = calloc(1, x_bytes + 1), *y = calloc(1, y_bytes + 1), *logits = malloc(bytes + 1);
  float loss;
  int code = fqt_predict(session, x, x_bytes, logits, bytes);
  if (code == 0) code = fqt_step(session, x, x_bytes, y, y_bytes, &loss);
  free(x);
  free(y);
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
