/* Trains ARTIFACT on batches that depend on the step alone, up to STEPS in all, and saves CHECKPOINT after every fourth:
 *
 *   kill_training ARTIFACT DATA STEPS CHECKPOINT
 *
 * DATA holds whole batches, x and then y. Goes on from CHECKPOINT where there is one. */
#include <fqt_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void check(int code) {
  if (code != 0) {
    fprintf(stderr, "%s\n", fqt_last_error());
    exit(1);
  }
}

int main(int argc, char **argv) {
  fqt_session *session;
  long steps, batches;
  if (argc != 5) return 2;
  steps = atol(argv[3]);
  check(fqt_load(argv[1], &session));
  const size_t x_bytes = fqt_x(session)->bytes, y_bytes = fqt_y(session)->bytes;
  FILE *file = fopen(argv[2], "rb");
  fseek(file, 0, SEEK_END);
  batches = ftell(file) / (long)(x_bytes + y_bytes);
  char *data = malloc((size_t)batches * (x_bytes + y_bytes));
  rewind(file);
  if (fread(data, x_bytes + y_bytes, (size_t)batches, file) != (size_t)batches) return 2;
  fclose(file);
  if (access(argv[4], F_OK) == 0) check(fqt_load_checkpoint(session, argv[4]));
  while (fqt_step_count(session) < steps) {
    const char *batch = data + (size_t)(fqt_step_count(session) % batches) * (x_bytes + y_bytes);
    float loss;
    check(fqt_step(session, batch, x_bytes, batch + x_bytes, y_bytes, &loss));
    if (fqt_step_count(session) % 4 == 0) check(fqt_save_checkpoint(session, argv[4]));
  }
  fqt_free(session);
  free(data);
  return 0;
}
