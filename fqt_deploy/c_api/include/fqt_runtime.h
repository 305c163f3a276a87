/* fqt_runtime: load an artifact of fqt-compile and train it, from C. Plain C99; needs no Python.
 *
 * Functions that can fail return 0, or N for the error FQTN of docs/errors.md; fqt_last_error() then says what is wrong.
 * After an error nothing has changed. A session is for one thread at a time; a second one is refused, and so is a process
 * that was forked after a step. The number of workers is FQT_NUM_THREADS, read by the first fqt_load of the process.
 */
#ifndef FQT_RUNTIME_H
#define FQT_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define FQT_API __attribute__((visibility("default")))
#else
#define FQT_API
#endif

/* A compiled step with its state. */
typedef struct fqt_session fqt_session;

/* What an array is. Arrays are dense and row-major; the pointers live as long as the session. */
typedef struct fqt_tensor {
  const char *name;
  const char *dtype;    /* NumPy's name of the element type: float32, int64, ... */
  const int64_t *shape; /* extents, in elements */
  size_t ndim;
  size_t bytes; /* of the whole array */
} fqt_tensor;

/* An array to pass: its name among the inputs, its extents, and its values, which may lie anywhere. */
typedef struct fqt_array {
  const char *name;
  const void *data;
  const int64_t *shape;
  size_t ndim;
} fqt_array;

/* What the latest failed call of this thread found: "FQT502: ..."; "" before the first. */
FQT_API const char *fqt_last_error(void);

/* Load the artifact in folder `path`: checks its version and every digest before it loads any code. */
FQT_API int fqt_load(const char *path, fqt_session **session);

/* Free the session and its state; NULL is allowed. */
FQT_API void fqt_free(fqt_session *session);

/* The arrays of one batch: those that the model takes, then targets; NULL past the end. shape[0] is the batch. */
FQT_API const fqt_tensor *fqt_input(const fqt_session *session, size_t index);
FQT_API size_t fqt_model_inputs(const fqt_session *session); /* how many of them the model takes */

/* The first input of the model, the first target (NULL if there is none), and what predict returns for one batch. */
FQT_API const fqt_tensor *fqt_x(const fqt_session *session);
FQT_API const fqt_tensor *fqt_y(const fqt_session *session);
FQT_API const fqt_tensor *fqt_logits(const fqt_session *session);

/* Train on one batch, an array for each input in any order. A loss that is not finite is no error. */
FQT_API int fqt_train(fqt_session *session, const fqt_array *batch, size_t count, float *loss);

/* The same for a model of one input and one target. The sizes are those of fqt_x and fqt_y, as a check. */
FQT_API int fqt_step(fqt_session *session, const void *x, size_t x_bytes, const void *y, size_t y_bytes, float *loss);

/* Logits of any number of samples, as many in each array; logits_bytes is as many of logits. */
FQT_API int fqt_predict_arrays(fqt_session *session, const fqt_array *inputs, size_t count, void *logits,
                               size_t logits_bytes);

/* The same for a model of one input: x_bytes is a whole number of samples. */
FQT_API int fqt_predict(fqt_session *session, const void *x, size_t x_bytes, void *logits, size_t logits_bytes);

/* Let predict take the averages of the parameters, which --ema keeps, or the parameters (0, as loaded). */
FQT_API int fqt_use_averages(fqt_session *session, int yes);

/* Learning rates, one for each parameter group; group 0 is the default group. */
FQT_API size_t fqt_groups(const fqt_session *session);
FQT_API double fqt_lr(const fqt_session *session, size_t group);
FQT_API int fqt_set_lr(fqt_session *session, double lr); /* of all groups */
FQT_API int fqt_set_group_lr(fqt_session *session, size_t group, double lr);

/* Seed of the random streams; with the step count it determines every random number. */
FQT_API int64_t fqt_seed(const fqt_session *session);
FQT_API void fqt_set_seed(fqt_session *session, int64_t seed);
FQT_API int64_t fqt_step_count(const fqt_session *session);

/* Checkpoints are safetensors files with the whole state, seed and rates; Python reads and writes the same. */
FQT_API int fqt_save_checkpoint(const fqt_session *session, const char *path); /* replaced whole or not at all */
FQT_API int fqt_load_checkpoint(fqt_session *session, const char *path);

/* Time the kernels of the steps in between, and write the times to `path` for fqt-profile DIR --times. */
FQT_API int fqt_start_timing(fqt_session *session);
FQT_API int fqt_stop_timing(fqt_session *session, const char *path);

/* The state: parameters "param/...", buffers "buffer/...", optimizer state, averages
 * "ema/...", numbers of the latest step "metric/...", "step"; NULL past the end. */
FQT_API const fqt_tensor *fqt_state(const fqt_session *session, size_t index);
FQT_API const void *fqt_state_data(const fqt_session *session, size_t index);

#ifdef __cplusplus
}
#endif
#endif
