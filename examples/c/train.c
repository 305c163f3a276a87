/* Train a compiled step from a raw data file, in C.
 *
 *   train ARTIFACT DATA EPOCHS [CHECKPOINT]
 *
 * DATA holds samples one after the other: the elements of x, then those of y, as the artifact's types. From NumPy arrays:
 *
 *   row = np.dtype([("x", x.dtype, x.shape[1:]), ("y", y.dtype, y.shape[1:])])
 *   data = np.empty(len(x), row); data["x"] = x; data["y"] = y; data.tofile("DATA")
 *
 * Prints the loss of every step, then the share of right answers on DATA. With CHECKPOINT, goes on from that file if it
 * is there, and writes it at the end.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fqt_runtime.h"

static void fail(const char *message) {
  fprintf(stderr, "train: %s\n", message);
  exit(1);
}

static void check(int code) {
  if (code != 0) fail(fqt_last_error());
}

/* The whole file; its size in *size. */
static char *read_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  long end;
  char *content;
  if (file == NULL || fseek(file, 0, SEEK_END) != 0 || (end = ftell(file)) < 0) fail("cannot read the data file");
  rewind(file);
  content = malloc((size_t)end + 1);
  if (content == NULL || fread(content, 1, (size_t)end, file) != (size_t)end) fail("cannot read the data file");
  fclose(file);
  *size = (size_t)end;
  return content;
}

/* Samples and targets of the data file, each in an array of its own. */
struct data {
  size_t samples, x_size, y_size;
  char *x, *y;
};

static struct data read_data(const char *path, const fqt_session *session) {
  const size_t batch = (size_t)fqt_x(session)->shape[0];
  struct data data = {0, fqt_x(session)->bytes / batch, fqt_y(session)->bytes / batch, NULL, NULL};
  size_t size, i;
  char *rows = read_file(path, &size);
  data.samples = size / (data.x_size + data.y_size);
  if (data.samples < batch || size % (data.x_size + data.y_size) != 0) fail("the data file does not fit the artifact");
  data.x = malloc(data.samples * data.x_size);
  data.y = malloc(data.samples * data.y_size);
  if (data.x == NULL || data.y == NULL) fail("out of memory");
  for (i = 0; i < data.samples; i++) {
    const char *row = rows + i * (data.x_size + data.y_size);
    memcpy(data.x + i * data.x_size, row, data.x_size);
    memcpy(data.y + i * data.y_size, row + data.x_size, data.y_size);
  }
  free(rows);
  return data;
}

/* Percent of samples whose largest logit is their label, where labels are what y holds. */
static void report_accuracy(fqt_session *session, const struct data *data) {
  const fqt_tensor *logits = fqt_logits(session);
  const size_t classes = (size_t)logits->shape[logits->ndim - 1];
  float *predicted = malloc(data->samples * classes * sizeof(float));
  size_t i, c, right = 0;
  if (logits->ndim != 2 || data->y_size != sizeof(int64_t) || strcmp(fqt_y(session)->dtype, "int64") != 0) return;
  if (predicted == NULL) fail("out of memory");
  check(fqt_predict(session, data->x, data->samples * data->x_size, predicted,
                    data->samples * classes * sizeof(float)));
  for (i = 0; i < data->samples; i++) {
    const float *row = predicted + i * classes;
    int64_t label;
    size_t best = 0;
    for (c = 1; c < classes; c++) best = row[c] > row[best] ? c : best;
    memcpy(&label, data->y + i * data->y_size, sizeof label);
    right += (int64_t)best == label;
  }
  printf("accuracy %.2f %%\n", 100.0 * (double)right / (double)data->samples);
  free(predicted);
}

int main(int argc, char **argv) {
  fqt_session *session;
  struct data data;
  size_t batch, start;
  int epoch, epochs;
  if (argc < 4 || argc > 5) fail("usage: train ARTIFACT DATA EPOCHS [CHECKPOINT]");
  epochs = atoi(argv[3]);
  check(fqt_load(argv[1], &session));
  data = read_data(argv[2], session);
  batch = (size_t)fqt_x(session)->shape[0];
  if (argc == 5) {
    FILE *checkpoint = fopen(argv[4], "rb");
    if (checkpoint != NULL) {
      fclose(checkpoint);
      check(fqt_load_checkpoint(session, argv[4]));
    }
  }
  for (epoch = 0; epoch < epochs; epoch++) {
    for (start = 0; start + batch <= data.samples; start += batch) {
      float loss;
      check(fqt_step(session, data.x + start * data.x_size, batch * data.x_size, data.y + start * data.y_size,
                     batch * data.y_size, &loss));
      printf("step %lld loss %.9g\n", (long long)fqt_step_count(session), (double)loss);
    }
  }
  report_accuracy(session, &data);
  if (argc == 5) check(fqt_save_checkpoint(session, argv[4]));
  fqt_free(session);
  free(data.x);
  free(data.y);
  return 0;
}
