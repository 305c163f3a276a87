// The C interface: sessions behind a pointer, exceptions as error codes.
#include "fqt_runtime.h"

#include <new>
#include <vector>

#include "error.h"
#include "session.h"

namespace {

thread_local std::string last_error;

fqt_tensor View(const fqt::TensorSpec& spec) {
  return {spec.name.c_str(), spec.dtype.c_str(), spec.shape.data(), spec.shape.size(), spec.Bytes()};
}

std::vector<fqt::Given> Arrays(const fqt_array* arrays, size_t count) {
  std::vector<fqt::Given> given;
  for (size_t i = 0; i < count; ++i) {
    given.push_back({arrays[i].name, arrays[i].data, {arrays[i].shape, arrays[i].shape + arrays[i].ndim}});
  }
  return given;
}

int Failed(int code, const std::string& message) {
  last_error = "FQT" + std::to_string(code) + ": " + message;
  return code;
}

// Run `action` and turn what it throws into an error code.
template <typename Action>
int Guarded(Action action) {
  try {
    action();
    return 0;
  } catch (const fqt::Error& error) {
    return Failed(error.code, error.what());
  } catch (const std::bad_alloc&) {
    return Failed(fqt::kNoMemory, "the memory is too small");
  } catch (const std::exception& error) {
    return Failed(fqt::kBug, error.what());
  }
}

}  // namespace

struct fqt_session {
  explicit fqt_session(const char* path) : session(path) {
    const fqt::Manifest& manifest = session.manifest();
    for (const fqt::InputSpec& spec : manifest.inputs) inputs.push_back(View(spec));
    model_inputs = manifest.ModelInputs();
    logits = View(manifest.logits);
    for (const fqt::TensorSpec& spec : manifest.state) state.push_back(View(spec));
  }

  fqt::Session session;
  size_t model_inputs;
  fqt_tensor logits;
  std::vector<fqt_tensor> inputs, state;
};

extern "C" {

const char* fqt_last_error(void) { return last_error.c_str(); }

int fqt_load(const char* path, fqt_session** session) {
  *session = nullptr;
  return Guarded([&] { *session = new fqt_session(path); });
}

void fqt_free(fqt_session* session) { delete session; }

const fqt_tensor* fqt_input(const fqt_session* session, size_t index) {
  return index < session->inputs.size() ? &session->inputs[index] : nullptr;
}

size_t fqt_model_inputs(const fqt_session* session) { return session->model_inputs; }

const fqt_tensor* fqt_x(const fqt_session* session) { return fqt_input(session, 0); }
const fqt_tensor* fqt_y(const fqt_session* session) { return fqt_input(session, session->model_inputs); }
const fqt_tensor* fqt_logits(const fqt_session* session) { return &session->logits; }

int fqt_step(fqt_session* session, const void* x, size_t x_bytes, const void* y, size_t y_bytes, float* loss) {
  return Guarded([&] { *loss = session->session.Step(x, x_bytes, y, y_bytes); });
}

int fqt_train(fqt_session* session, const fqt_array* batch, size_t count, float* loss) {
  return Guarded([&] { *loss = session->session.Train(Arrays(batch, count)); });
}

int fqt_predict_arrays(fqt_session* session, const fqt_array* inputs, size_t count, void* logits, size_t logits_bytes) {
  return Guarded([&] { session->session.PredictArrays(Arrays(inputs, count), logits, logits_bytes); });
}

int fqt_predict(fqt_session* session, const void* x, size_t x_bytes, void* logits, size_t logits_bytes) {
  return Guarded([&] { session->session.Predict(x, x_bytes, logits, logits_bytes); });
}

int fqt_use_averages(fqt_session* session, int yes) {
  return Guarded([&] { session->session.UseAverages(yes != 0); });
}

size_t fqt_groups(const fqt_session* session) { return session->session.rates().size(); }

double fqt_lr(const fqt_session* session, size_t group) {
  const std::vector<double>& rates = session->session.rates();
  return group < rates.size() ? rates[group] : 0.0;
}

int fqt_set_lr(fqt_session* session, double lr) {
  return Guarded([&] { session->session.SetRates(std::vector<double>(fqt_groups(session), lr)); });
}

int fqt_set_group_lr(fqt_session* session, size_t group, double lr) {
  return Guarded([&] {
    std::vector<double> rates = session->session.rates();
    if (group >= rates.size()) {
      throw fqt::Error(fqt::kBadOption, "there are " + std::to_string(rates.size()) + " parameter groups");
    }
    rates[group] = lr;
    session->session.SetRates(rates);
  });
}

int64_t fqt_seed(const fqt_session* session) { return session->session.seed(); }
void fqt_set_seed(fqt_session* session, int64_t seed) { session->session.SetSeed(seed); }
int64_t fqt_step_count(const fqt_session* session) { return session->session.StepCount(); }

int fqt_save_checkpoint(const fqt_session* session, const char* path) {
  return Guarded([&] { session->session.SaveCheckpoint(path); });
}

int fqt_load_checkpoint(fqt_session* session, const char* path) {
  return Guarded([&] { session->session.LoadCheckpoint(path); });
}

int fqt_start_timing(fqt_session* session) {
  return Guarded([&] { session->session.StartTiming(); });
}

int fqt_stop_timing(fqt_session* session, const char* path) {
  return Guarded([&] { session->session.StopTiming(path); });
}

const fqt_tensor* fqt_state(const fqt_session* session, size_t index) {
  return index < session->state.size() ? &session->state[index] : nullptr;
}

const void* fqt_state_data(const fqt_session* session, size_t index) {
  return index < session->state.size() ? session->session.StateData(index) : nullptr;
}

}  // extern "C"
