// What a packed file's metadata says of logits: the temperature, and when a picture is none of the classes.
#pragma once

#include "file/json.h"
#include "file/schema.h"

namespace gsb {

// All in double, classes in order. Without the key `decision` the temperature is 1 and nothing is unknown.
struct Decision {
    using Score = schema::Score;

    double temperature = 1;
    bool has_unknown = false;
    Score score = Score::max_logit;
    double threshold = 0, false_alarm_rate = 0;

    // softmax(logits / temperature) of `classes` numbers.
    void probabilities(const float* logits, int classes, double* out) const;
    // The score that is compared with the threshold, high for known pictures.
    double known_score(const float* logits, int classes) const;
};

// Reads the metadata's `decision`, an object. Throws Error.
Decision read_decision(const Json& json);

}  // namespace gsb
